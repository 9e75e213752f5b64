"""Which kernel and configuration a problem gets: from the measured table, or from a model where there is none."""

from __future__ import annotations

import dataclasses
import math

from etcuda.kernels.attention import table
from etcuda.kernels.attention.configs import (
    SplitConfig,
    TiledConfig,
    ctas_per_split,
    scaled_section,
    split_candidates,
    split_rows,
    tiled_candidates,
    with_splits,
)
from etcuda.kernels.attention.hopper.decode import ClusterConfig, fits, leaves_room
from etcuda.kernels.attention.problem import MAX_QUERY, POSITIONS, AttentionProblem
from etcuda.kernels.attention.table import Config, Entry, KernelName, Table
from etcuda.kernels.common.device import Device

# How far apart two shapes are: doublings of each quantity, weighted by how much they change the best configuration.
# Rows of a KV head fill the split kernel's tile; the tiled kernel takes heads one by one.
_WEIGHTS: dict[KernelName, dict[str, float]] = {
    "split": {"head_dim": 8.0, "rows": 2.0, "l_q": 2.0, "l_kv": 1.0, "heads": 1.0, "window": 0.5, "windowed": 4.0},
    "tiled": {"head_dim": 8.0, "l_q": 2.0, "l_kv": 1.0, "heads": 0.5, "window": 0.5, "windowed": 4.0},
}
_WEIGHTS["cluster"] = _WEIGHTS["split"]
# Microseconds that one kernel in the place of two is worth to a step beside the difference of their own times: the
# product behind it starts earlier. The least that was measured, see docs/experiments/attention-one-kernel.md.
ONE_KERNEL_US = 3.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """A kernel, its configuration, and where the choice comes from, in words."""

    kernel: KernelName
    config: Config
    source: str


def choose(problem: AttentionProblem, device: Device, one_kernel: bool = False) -> Choice:
    """The kernel and configuration for a problem that some kernel serves.

    Args:
        problem: the call in numbers.
        device: the GPU.
        one_kernel: whether ``attention_cluster`` serves the call's tensors.
    """
    most = problem.most_rows
    if most is not None and most <= split_limit(problem, device):
        found = choose_cluster(problem, device) if one_kernel else None
        return found or choose_split(problem, device)
    return choose_tiled(problem, device)


def choose_cluster(problem: AttentionProblem, device: Device) -> Choice | None:
    """The configuration of the kernel of clusters, where it was measured to be faster than splits and a reduction.

    Faster in a step, that is: ``ONE_KERNEL_US`` are granted, and the configuration leaves room for the kernel behind.
    The nearest shape that both were measured on decides, with as many keys as are typically there: of a cache that
    positions say the length of, half of its places. For another ``head_dim`` than was measured it is not taken.
    """
    measured = table.load(device.arch)
    if measured is None:
        return None
    if problem.causal == POSITIONS and not problem.window:
        half = problem.l_kv // 2
        problem = dataclasses.replace(problem, l_kv=max(half, 1))
    split = {entry.problem: entry for entry in measured.of("split")}
    both = [e for e in measured.of("cluster") if e.problem in split and e.problem.head_dim == problem.head_dim]
    entry = nearest(both, problem)
    if entry is None:
        return None
    rows, most = problem.l_q * problem.group, split[entry.problem].us + ONE_KERNEL_US
    for config, us in entry.candidates:
        assert isinstance(config, ClusterConfig)
        if us < most and fits(config, problem.head_dim, rows) and leaves_room(config, problem.head_dim, rows):
            return Choice("cluster", config, _measured(measured, entry))
    return None


def split_limit(problem: AttentionProblem, device: Device) -> int:
    """The most query rows for which the split kernel is taken, whatever ``problem.l_q`` is.

    With a table: up to the first number of rows at which the tiled kernel was measured to be faster on the nearest
    shape. Without: as many as the kernel takes.
    """
    measured = table.load(device.arch)
    if measured is None:
        return MAX_QUERY
    tiled = {entry.problem: entry for entry in measured.of("tiled")}
    pairs = [(entry, tiled[entry.problem]) for entry in measured.of("split") if entry.problem in tiled]
    for l_q in range(2, MAX_QUERY + 1):
        asked = dataclasses.replace(problem, l_q=l_q, max_l_q=0)
        below = [pair for pair in pairs if pair[0].problem.l_q <= l_q]
        if below:
            split, other = min(below, key=lambda pair: distance(pair[0].problem, asked, "split"))
            if other.us < split.us:
                return l_q - 1
    return MAX_QUERY


def choose_split(problem: AttentionProblem, device: Device) -> Choice:
    """The split kernel's configuration: the nearest measured one, with as many CTAs in all as it had."""
    measured = table.load(device.arch)
    entry = None if measured is None else nearest(measured.of("split"), problem)
    if measured is None or entry is None:
        config = split_candidates(problem, device)[0]
        config = dataclasses.replace(config, block_m=split_rows(problem, problem.most_rows))
        return Choice("split", config, _model(device))
    assert isinstance(entry.best, SplitConfig)
    config = dataclasses.replace(entry.best, block_m=split_rows(problem, problem.most_rows))
    scale = device.num_sms / _num_sms(measured, device)
    if distance(entry.problem, problem, "split") > 0 or config.block_m != entry.best.block_m or scale != 1:
        num_ctas = ctas_per_split(entry.problem, entry.best.block_m) * entry.best.num_splits
        config = with_splits(problem, config, num_ctas * scale)
    return Choice("split", config, _measured(measured, entry))


def choose_tiled(problem: AttentionProblem, device: Device) -> Choice:
    """The tiled kernel's configuration: the nearest measured one."""
    measured = table.load(device.arch)
    entry = None if measured is None else nearest(measured.of("tiled"), problem)
    if measured is None or entry is None:
        return Choice("tiled", tiled_candidates(problem, device)[0], _model(device))
    config = entry.best
    assert isinstance(config, TiledConfig)
    if distance(entry.problem, problem, "tiled") > 0:
        config = dataclasses.replace(config, section=scaled_section(entry.problem, config.section, problem))
    return Choice("tiled", config, _measured(measured, entry))


def nearest(entries: list[Entry], problem: AttentionProblem) -> Entry | None:
    """The entry of the nearest shape; the first of several."""
    return min(entries, key=lambda entry: distance(entry.problem, problem, entry.kernel), default=None)


def distance(measured: AttentionProblem, asked: AttentionProblem, kernel: KernelName) -> float:
    """0 for shapes that are alike in everything that matters."""
    quantities = {
        "head_dim": (measured.block_d, asked.block_d),
        "rows": (measured.group * measured.l_q, asked.group * asked.l_q),
        "l_q": (measured.l_q, asked.l_q),
        "l_kv": (measured.l_kv, asked.l_kv),
        "heads": (measured.batch * measured.num_kv_heads, asked.batch * asked.num_kv_heads),
        "windowed": (1 + (measured.window > 0), 1 + (asked.window > 0)),
        "window": (measured.visible_pairs / max(measured.l_q, 1), asked.visible_pairs / max(asked.l_q, 1)),
    }
    doublings = {name: abs(math.log2(max(a, 1.0) / max(b, 1.0))) for name, (a, b) in quantities.items()}
    return sum(weight * doublings[name] for name, weight in _WEIGHTS[kernel].items())


def _num_sms(measured: Table, device: Device) -> int:
    return int(measured.environment.get("num_sms", device.num_sms))


def _measured(measured: Table, entry: Entry) -> str:
    shape = entry.problem
    return (
        f"measured on {measured.environment.get('gpu', measured.arch)}, nearest shape batch {shape.batch} "
        f"heads {shape.num_heads}/{shape.num_kv_heads} head_dim {shape.head_dim} L_q {shape.l_q} L_kv {shape.l_kv}"
    )


def _model(device: Device) -> str:
    return f"the model, since there is no table for {device.arch}"
