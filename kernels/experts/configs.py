"""How the kernels are cut into CTAs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from etcuda.errors import KernelArgumentError
from etcuda.kernels.experts.problem import ExpertsProblem

# Tokens up to which each token has CTAs of its own, as measured on an H200 with 256 experts, 8 for each token: of
# quantised weights, and of weights as they are, whose bytes count for more.
_FEW_TOKENS, _FEW_TOKENS_DENSE = 32, 8
# Shared memory of a CTA, bytes: what every GPU from compute capability 8.0 on has, and what larger tiles need.
LEAST_SHARED, _LARGE_SHARED = 99 << 10, 200 << 10


@dataclasses.dataclass(frozen=True)
class FewLaunch:
    """The two kernels for few tokens.

    Attributes:
        up_n: features of an expert that a CTA computes.
        up_k: columns of a step; of quantised weights a multiple of 32.
        up_warps: warps of a CTA.
        down_n, down_k, down_warps: likewise of the second kernel, whose columns are those of all experts of a token.
        pdl: 1 to launch each kernel while the one in front of it runs, which must not write weights.
    """

    up_n: int
    up_k: int
    up_warps: int
    down_n: int
    down_k: int
    down_warps: int
    pdl: int

    def to_args(self) -> list[int]:
        """As the operator takes it."""
        return [0, *dataclasses.astuple(self)]


@dataclasses.dataclass(frozen=True)
class ManyLaunch:
    """The kernels for many tokens.

    Attributes:
        block_m: rows of one expert in a tile.
        up_n: features of a tile; of the gate and of the other half as many.
        up_k: columns of a step; of quantised weights a multiple of 128.
        up_warps: warps of a CTA.
        up_stages: steps whose loads are in flight.
        down_n, down_k, down_warps, down_stages: likewise of the second product.
        pdl: 1 to launch each kernel while the one in front of it runs, which must not write weights.
    """

    block_m: int
    up_n: int
    up_k: int
    up_warps: int
    up_stages: int
    down_n: int
    down_k: int
    down_warps: int
    down_stages: int
    pdl: int

    def to_args(self) -> list[int]:
        """As the operator takes it."""
        return [1, *dataclasses.astuple(self)]


@dataclasses.dataclass(frozen=True)
class HopperLaunch:
    """The kernel in CUDA C++ for many tokens on Hopper, of int4 or bfloat16 weights.

    Attributes:
        ctas: of each product; one for each multiprocessor.
        pdl: 1 to launch each kernel while the one in front of it runs, which must not write weights.
    """

    ctas: int
    pdl: int

    def to_args(self) -> list[int]:
        """As the operator takes it."""
        return [2, *dataclasses.astuple(self)]


Launch = FewLaunch | ManyLaunch | HopperLaunch


def launch_of(how: Sequence[int]) -> Launch:
    """What ``to_args`` made integers of.

    Raises:
        KernelArgumentError: it did not.
    """
    types: list[type[Launch]] = [FewLaunch, ManyLaunch, HopperLaunch]
    kinds = {(number, len(dataclasses.fields(each)) + 1): each for number, each in enumerate(types)}
    kind = kinds.get((how[0] if how else -1, len(how)))
    if kind is None:
        raise KernelArgumentError(
            "experts: how: expected what to_args of a FewLaunch, a ManyLaunch or a HopperLaunch returns, got "
            f"{list(how)}."
        )
    made = kind(*how[1:])
    for field in dataclasses.fields(made):
        value: int = getattr(made, field.name)
        if field.name.endswith(("stages", "ctas")):
            least, power = 1, False
        elif isinstance(made, ManyLaunch) and field.name in ("block_m", "up_n", "down_n", "up_k", "down_k"):
            least, power = 16, True
        else:
            least, power = 0 if field.name == "pdl" else 1, True
        if value < least or (power and value & (value - 1)):
            raise KernelArgumentError(
                f"experts: how: {field.name}: expected {'a power of two' if power else 'a number'} from {least} on, "
                f"got {value}."
            )
    return made


def choose(problem: ExpertsProblem, most_tokens: int | None, shared_bytes: int, pdl: int) -> Launch:
    """The kernels for up to ``most_tokens`` (``None``: any number), on a GPU with so much shared memory a CTA.

    What is best for 256 experts of 512 features on an H200, fitted to other sizes.
    """
    few = is_few(problem, most_tokens) and problem.few_serves
    return _few(problem, pdl) if few else _many(problem, shared_bytes, pdl)


def is_few(problem: ExpertsProblem, most_tokens: int | None) -> bool:
    """Whether so many tokens (``None``: any number) are few, for which each token has CTAs of its own."""
    return most_tokens is not None and most_tokens <= (_FEW_TOKENS if problem.quantized else _FEW_TOKENS_DENSE)


def _few(problem: ExpertsProblem, pdl: int) -> FewLaunch:
    columns = padded(problem.hidden), padded(problem.width * problem.top_k)
    if problem.quantized:
        # Two pairs of rows a warp, whose lanes lie along the columns; then four rows, or two of one token, which has
        # few CTAs. One step of 8,192 columns is faster than two of 4,096 also where the half is behind the last expert.
        up_k, down_k = min(2048, columns[0]), min(8192, columns[1])
        down_n = 8 if problem.tokens == 1 else 16
        return FewLaunch(16, up_k, max(1, up_k // 256), down_n, down_k, max(1, down_k // 1024), pdl)
    # Whatever the dtype is, a lane has eight columns of a row at a time.
    up_k, down_k = min(2048, columns[0]), min(2048, columns[1])
    return FewLaunch(2, up_k, max(1, up_k // 512), 4, down_k, max(1, down_k // 256), pdl)


def _many(problem: ExpertsProblem, shared_bytes: int, pdl: int) -> ManyLaunch:
    each = round(problem.rows / problem.num_experts)
    if problem.quantized:
        block_m = 16 if each <= 16 else 32 if each <= 32 else 64
        step = 256 if shared_bytes > _LARGE_SHARED else 128
        return ManyLaunch(block_m, 64, step, 4, 2, 128, step, 4, 2, pdl)
    if problem.itemsize > 2:
        return ManyLaunch(min(64, max(16, padded(each))), 64, 32, 4, 2, 64, 32, 4, 2, pdl)
    block_m = min(128, max(16, padded(2 * each)))
    if shared_bytes <= _LARGE_SHARED:
        return ManyLaunch(min(block_m, 64), 64, 64, 4, 2, 64, 64, 4, 2, pdl)
    if block_m > 64:
        return ManyLaunch(block_m, 128, 64, 8, 4, 128, 64, 8, 3, pdl)
    return ManyLaunch(block_m, 64, 64, 4, 4, 128, 64, 4, 4, pdl)


def padded(number: int) -> int:
    """The power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()
