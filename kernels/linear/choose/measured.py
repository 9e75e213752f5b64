"""What a measured table says of shapes and numbers of tokens that were not measured."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from etcuda.kernels.linear.choose.configs import MatmulConfig, MatvecConfig, padded
from etcuda.kernels.linear.choose.table import Config, Entry, Table
from etcuda.kernels.linear.problem import LinearProblem

# How far apart two shapes are: doublings of each quantity, weighted by how much they change the best configuration.
_WEIGHTS = {"m": 4.0, "k": 2.0, "n": 1.0, "group_size": 0.25}
# Configurations of tensor-core products that one program holds: each is code of its own in the file.
MOST_RANGES = 3


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers of tokens that one configuration serves, after those of the range before.

    Attributes:
        most: the greatest; ``None`` for any.
        tokens: those that the configuration is chosen for.
    """

    most: int | None
    tokens: tuple[int, ...]


def distance(measured: LinearProblem, asked: LinearProblem, without: str = "") -> float:
    """0 for shapes that are alike in everything that matters, but for the quantity ``without``."""
    pairs = [(_WEIGHTS[name], getattr(measured, name), getattr(asked, name)) for name in _WEIGHTS if name != without]
    return sum(weight * abs(math.log2(max(a, 1) / max(b, 1))) for weight, a, b in pairs)


def nearest(entries: list[Entry], problem: LinearProblem, pdl: int) -> Entry | None:
    """The entry of the nearest shape; of several the one that was launched like this, then the first."""
    return min(entries, key=lambda e: (distance(e.problem, problem), e.pdl != pdl), default=None)


def nearest_but_n(entries: list[Entry], problem: LinearProblem, pdl: int | None = None) -> list[Entry]:
    """The entries of every N at the nearest of all other quantities; N of ``problem`` is not looked at."""

    def alike(entry: Entry) -> tuple[int, int, int, int]:
        return entry.problem.m, entry.problem.k, entry.problem.group_size, entry.pdl

    def key(entry: Entry) -> tuple[float, bool, tuple[int, int, int, int]]:
        return distance(entry.problem, problem, "n"), entry.pdl != pdl, alike(entry)

    first = min(entries, key=key, default=None)
    return [] if first is None else [entry for entry in entries if alike(entry) == alike(first)]


# Integer dot products

Splits = dict[MatvecConfig, tuple[MatvecConfig, float]]


def best_matvec(
    measured: Table, problem: LinearProblem, pdl: int, quantized: int | None = None
) -> tuple[MatvecConfig, Entry] | None:
    """The configuration for up to eight tokens and where it was measured; ``None`` if none fits.

    With ``quantized`` among those alone that take activations quantized before (1), or that do not (0).

    How the sum of a row is split follows from K, M and the weight's format alone, so that rows of a weight have the
    same results whatever other rows are beside them: over the shapes measured at the nearest K, the split that loses
    least to the best of each. Among its configurations the one that was best at the nearest N.
    """
    # One token alone is quantized by the product itself at little cost, so that its best kernels are others.
    alike = [e for e in measured.of("matvec") if (e.problem.m == 1) == (problem.m == 1)]
    found = [(entry, _splits(entry, problem)) for entry in nearest_but_n(alike, problem, pdl)]
    known = {split for _, splits in found for split in splits if quantized in (None, split.quantized)}
    if not known:
        return None
    split = min(known, key=lambda each: (_loss(each, found), dataclasses.astuple(each)))
    entry, splits = min(
        ((entry, splits) for entry, splits in found if split in splits),
        key=lambda row: (distance(row[0].problem, problem), row[0].problem.n),
    )
    return splits[split][0], entry


def _splits(entry: Entry, problem: LinearProblem) -> Splits:
    """For each split of sums that the problem can have: its fastest configuration and microseconds."""
    found: Splits = {}
    for config, us in entry.candidates:
        assert isinstance(config, MatvecConfig)
        fitting = _fitting(config, problem)
        if fitting is not None:
            found.setdefault(fitting.split, (fitting, us))
    return found


def _fitting(config: MatvecConfig, problem: LinearProblem) -> MatvecConfig | None:
    """The configuration for another K; ``None`` if there is none."""
    if not config.quantized and problem.itemsize != 2:
        return None
    blocks = padded(problem.k // 32)
    if not config.resident or config.blocks == blocks:
        return config
    # The row is kept in registers: as many lanes as give each as much to keep, if there are such.
    warps = config.num_warps * blocks / config.blocks
    if warps < 1 or warps > 16:
        return None
    return dataclasses.replace(config, blocks=blocks, num_warps=int(warps))


def _loss(split: MatvecConfig, found: list[tuple[Entry, Splits]]) -> float:
    """How much slower than the best a split is, as a sum of logarithms; where it was not measured, as the slowest."""
    return sum(math.log(_split_us(entry, splits, split) / entry.us) for entry, splits in found)


def _split_us(entry: Entry, splits: Splits, split: MatvecConfig) -> float:
    return splits[split][1] if split in splits else entry.candidates[-1][1]


def matvec_is_faster(measured: Table, problem: LinearProblem) -> bool:
    """Whether integer dot products beat tensor cores for ``problem.m`` tokens, over all N measured at the nearest K.

    True where the two were not measured together for that many tokens.
    """
    other = {(entry.problem, entry.pdl): entry for entry in measured.of("matmul")}
    both = [
        entry
        for entry in measured.of("matvec")
        if entry.problem.m == padded(problem.m) and (entry.problem, entry.pdl) in other
    ]
    total = 0.0
    for entry in nearest_but_n(both, problem):
        picked = best_matvec(measured, entry.problem, entry.pdl)
        us = entry.us if picked is None else _split_us(entry, _splits(entry, entry.problem), picked[0].split)
        rival = other[entry.problem, entry.pdl]
        total += math.log(us / min(us for config, us in rival.candidates if _serves(config, problem, measured)))
    return total <= 0


def quantizing_before_pays(
    measured: Table, problem: LinearProblem, pdl: int, quantize_us: float, front_us: float = 0.0
) -> bool | None:
    """Whether products of one token gain from activations that were quantized for nothing, over all N measured at the
    nearest K; ``None`` if they were not measured both ways.

    Args:
        measured: the table.
        problem: the call in numbers; N is not looked at.
        pdl: as of ``best_matvec``.
        quantize_us: what quantizing alone takes, which is part of the time of products that take its result.
        front_us: what the kernel in front takes more where it does not quantize.
    """
    own, other = (best_matvec(measured, problem, pdl, quantized) for quantized in (0, 1))
    if own is None or other is None:
        return None
    total = 0.0
    alike = [entry for entry in measured.of("matvec") if entry.problem.m == 1]
    for entry in nearest_but_n(alike, problem, pdl):
        splits = _splits(entry, problem)
        after = _split_us(entry, splits, other[0].split) - quantize_us
        total += math.log(max(after, 1e-3) / (_split_us(entry, splits, own[0].split) + front_us))
    return total <= 0


# Tensor cores


def best_matmul(
    measured: Table, problem: LinearProblem, tokens: Sequence[int], pdl: int
) -> tuple[MatmulConfig, Entry] | None:
    """The configuration that loses least over so many tokens at the nearest shape, and the nearest entry."""
    entry = nearest(measured.of("matmul"), dataclasses.replace(problem, m=tokens[-1]), pdl)
    if entry is None:
        return None
    (shape,) = _shapes([entry], measured)
    return _best([_serving(shape, m, problem, measured) for m in tokens])[0], entry


def ranges(
    measured: Table, problem: LinearProblem, least: int, most: int | None, typical: int, pdl: int
) -> list[Range]:
    """Cuts the numbers of tokens from ``least`` to ``most`` into at most ``MOST_RANGES``.

    They end at measured numbers of tokens, where the loss is least: of each range and each N measured at the nearest K,
    how much slower than the best for each number of tokens is the one configuration that is best for all of them? N of
    ``problem`` is not looked at. Empty if nothing was measured.
    """
    entries = measured.of("matmul")
    wanted = nearest_but_n(entries, dataclasses.replace(problem, m=max(typical, least)), pdl)
    if not wanted:
        return []
    k, group = wanted[0].problem.k, wanted[0].problem.group_size
    shapes = _shapes([e for e in entries if (e.problem.k, e.problem.group_size) == (k, group)], measured)
    ends: list[int | None] = [*sorted({entry.problem.m for shape in shapes for entry in shape}), None]
    del ends[-2]  # The last is for more tokens too.
    buckets: list[Range] = []
    first = 0
    for end in ends:
        last = most if end is None or (most is not None and most < end) else end
        if (last is None or last >= least) and (most is None or first <= most):
            top = max(entry.problem.m for shape in shapes for entry in shape) if last is None else last
            inside = first <= typical and (last is None or typical <= last)
            buckets.append(Range(last, (max(typical if inside else top, 1),)))
        first = (end or 0) + 1
    return _merged(buckets, [[_serving(shape, b.tokens[0], problem, measured) for b in buckets] for shape in shapes])


def _merged(buckets: list[Range], times: list[list[dict[MatmulConfig, float]]]) -> list[Range]:
    """At most ``MOST_RANGES`` of neighbouring buckets, with the least loss; the fewest of equal ones.

    ``times``: for each shape and bucket what the configurations take.
    """
    count = len(buckets)
    tokens = [bucket.tokens[0] for bucket in buckets]
    losses = {
        (i, j): sum(_best(each[i:j])[1] for each in times) for i, j in itertools.combinations(range(count + 1), 2)
    }
    cuts = [
        (0, *inner, count)
        for parts in range(1, min(MOST_RANGES, count) + 1)
        for inner in itertools.combinations(range(1, count), parts - 1)
    ]
    best = min(cuts, key=lambda cut: round(sum(losses[pair] for pair in itertools.pairwise(cut)), 9))
    return [Range(buckets[j - 1].most, tuple(tokens[i:j])) for i, j in itertools.pairwise(best)]


def _shapes(entries: list[Entry], measured: Table) -> list[list[Entry]]:
    """For each shape of the entries, all that was measured of it, launched alike: one entry a number of tokens."""

    def shape(entry: Entry) -> tuple[LinearProblem, int]:
        return dataclasses.replace(entry.problem, m=0), entry.pdl

    wanted = dict.fromkeys(shape(entry) for entry in entries)
    return [[entry for entry in measured.of("matmul") if shape(entry) == each] for each in wanted]


def _best(times: Sequence[dict[MatmulConfig, float]]) -> tuple[MatmulConfig, float]:
    """The configuration that is best for several numbers of tokens together, and its loss."""
    least = [min(each.values()) for each in times]
    losses = {c: sum(us[c] / best - 1 for us, best in zip(times, least, strict=True)) for c in times[0]}
    config = min(losses, key=losses.__getitem__)
    return config, losses[config]


def _serving(shape: list[Entry], m: int, problem: LinearProblem, measured: Table) -> dict[MatmulConfig, float]:
    """``estimates`` of the configurations that take the problem's weight."""
    found = estimates(shape, m, _num_sms(measured))
    return {config: us for config, us in found.items() if _serves(config, problem, measured)}


def _serves(config: Config, problem: LinearProblem, measured: Table) -> bool:
    assert isinstance(config, MatmulConfig)
    return config.serves(problem, measured.arch)


def estimates(shape: list[Entry], m: int, num_sms: int) -> dict[MatmulConfig, float]:
    """Microseconds of every configuration measured on a shape, for ``m`` tokens; what was measured nearest to m first.

    A tile takes what it took: time goes with the number of tiles, but does not fall any more once every multiprocessor
    has one, nor below the best that was measured for as many tokens or fewer.
    """
    below = [entry for entry in shape if entry.problem.m <= m]
    floor = max(below, key=lambda entry: entry.problem.m).us if below else 0.0
    found: dict[MatmulConfig, float] = {}
    for entry in sorted(shape, key=lambda e: (abs(math.log2(max(e.problem.m, 1) / max(m, 1))), e.problem.m)):
        least = num_sms if m < entry.problem.m else 1
        for config, us in entry.candidates:
            assert isinstance(config, MatmulConfig)
            then, now = (
                max(least, math.ceil(entry.problem.n / config.block_n) * math.ceil(max(tokens, 1) / config.block_m))
                for tokens in (entry.problem.m, m)
            )
            found.setdefault(config, max(us * now / then, floor))
    return found


def _num_sms(measured: Table) -> int:
    return int(measured.environment.get("num_sms", 1))
