"""The measured table decides which kernel and configuration attention gets."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pathlib
import types
from typing import Any

import pytest
import torch

from etcuda.kernels.attention import table
from etcuda.kernels.attention.configs import split_candidates, tiled_candidates
from etcuda.kernels.attention.hopper.decode import ClusterConfig
from etcuda.kernels.attention.problem import LOWER_RIGHT, UPPER_LEFT, AttentionProblem
from etcuda.kernels.attention.select import choose, choose_split, split_limit
from etcuda.partitioner.rules import attention as attention_rule
from etcuda.passes.attention import route, simplify
from etcuda.passes.recognize import mask as recognize_mask
from etcuda.passes.recognize import repeated_heads
from etcuda.target import PORTABLE, TARGETS
from tests.partitioner.programs import export
from tests.passes.attention.attention_routing import (
    CLUSTER,
    DYNAMIC,
    H200,
    SPLIT,
    TILED,
    attend,
    only_call,
    routed,
    self_attention,
    tensors,
)


@pytest.mark.usefixtures("no_table")
def test_every_target_gets_a_configuration() -> None:
    for target in (*TARGETS.values(), PORTABLE):
        for problem in (AttentionProblem(1, 32, 4, 512, 1, 4096), AttentionProblem(2, 8, 8, 512, 900, 900)):
            config = choose(problem, target).config
            used = (config.block_n + config.block_m) * problem.block_d * 2
            assert used <= target.shared_memory_per_block, (target.arch, config)


# Made-up entries; what a configuration has beyond these numbers is as in the first candidate.
_SPLIT = split_candidates(AttentionProblem(1, 4, 2, 64, 1, 65536), H200)[0]
_TILED = tiled_candidates(AttentionProblem(1, 4, 2, 64, 512, 512), H200)[0]
SMALL = dataclasses.replace(
    _SPLIT, block_m=16, block_n=32, num_warps=4, num_stages=2, num_splits=5, block_s=5, chunk_d=16
)
LARGE = dataclasses.replace(
    _SPLIT, block_m=16, block_n=128, num_warps=4, num_stages=3, num_splits=20, block_s=20, chunk_d=64
)
TILE = dataclasses.replace(_TILED, block_m=64, block_n=64, num_warps=4, num_stages=3)
WIDE = dataclasses.replace(_TILED, block_m=128, block_n=32, num_warps=8, num_stages=2)


def entry(kernel: table.KernelName, config: table.Config, us: float, **shape: Any) -> table.Entry:
    problem = AttentionProblem(**({"batch": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64} | shape))
    return table.Entry(kernel, problem, ((config, us), (dataclasses.replace(config, num_warps=1), us + 1)))


def measured(*entries: table.Entry) -> table.Table:
    return table.Table("sm_90", {"gpu": "made up", "num_sms": 132}, entries)


def use(monkeypatch: pytest.MonkeyPatch, *entries: table.Entry) -> None:
    monkeypatch.setattr(table, "load", lambda arch: measured(*entries))


def test_each_bucket_picks_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        entry("split", SMALL, 5, l_q=1, l_kv=1024),
        entry("split", LARGE, 9, l_q=1, l_kv=65536),
        entry("tiled", TILE, 50, l_q=512, l_kv=512, causal=UPPER_LEFT),
        entry("tiled", WIDE, 500, l_q=8192, l_kv=8192, causal=UPPER_LEFT),
    ]
    use(monkeypatch, *entries)
    for each in entries:
        assert choose(each.problem, H200).config == each.best
    near = AttentionProblem(1, 4, 2, 64, 1, 1500)
    assert choose(near, H200).config == dataclasses.replace(SMALL, block_s=8)
    assert "measured on made up, nearest shape batch 1 heads 4/2" in choose(near, H200).source
    assert choose(dataclasses.replace(near, l_kv=40000), H200).config.block_n == LARGE.block_n
    assert choose(AttentionProblem(1, 4, 2, 64, 700, 700, causal=UPPER_LEFT), H200).config.block_m == TILE.block_m
    assert choose(AttentionProblem(1, 4, 2, 64, 5000, 5000, causal=UPPER_LEFT), H200).config.block_m == WIDE.block_m
    # Other heads: as many blocks in all. Fewer keys: no split without keys.
    assert choose_split(AttentionProblem(5, 4, 2, 64, 1, 1024), H200).config.num_splits == 1  # type: ignore[union-attr]
    assert choose_split(AttentionProblem(1, 2, 1, 64, 1, 1024), H200).config.num_splits == 10  # type: ignore[union-attr]
    assert choose_split(AttentionProblem(1, 4, 2, 64, 1, 64), H200).config.num_splits == 2  # type: ignore[union-attr]
    smaller = dataclasses.replace(H200, num_sms=66)
    assert choose_split(near, smaller).config.num_splits == 2  # type: ignore[union-attr]


def test_changing_the_table_changes_the_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(1, 1024)
    picks = []
    for config in (SMALL, dataclasses.replace(SMALL, block_n=128, num_splits=3)):
        use(monkeypatch, entry("split", config, 5, l_q=1, l_kv=1024, head_dim=16))
        picks.append(only_call(routed(export(attend, *inputs))).args[10:])
        assert picks[-1] == dataclasses.astuple(config)
    assert picks[0] != picks[1]


def pair(l_q: int, split_us: float, tiled_us: float) -> list[table.Entry]:
    shape = {"l_q": l_q, "l_kv": 1024, "causal": LOWER_RIGHT, "head_dim": 16}
    return [entry("split", SMALL, split_us, **shape), entry("tiled", TILE, tiled_us, **shape)]


@pytest.mark.parametrize(("at_4", "at_16", "limit"), [(9, 9, 16), (9, 2, 15), (2, 9, 3), (2, 2, 3)])
def test_the_crossover_is_the_tables(monkeypatch: pytest.MonkeyPatch, at_4: float, at_16: float, limit: int) -> None:
    use(monkeypatch, *pair(4, 5, at_4), *pair(16, 5, at_16))
    problem = AttentionProblem(1, 4, 2, 16, 9, 1024, causal=LOWER_RIGHT)
    assert split_limit(problem, H200) in (limit, limit - 5)  # 16 is nearest from 9 rows on
    program = routed(export(self_attention, *tensors(24, 24), dynamic=DYNAMIC))
    (cond,) = [node for node in program.graph.nodes if node.target is torch.ops.higher_order.cond]
    predicate: Any = cond.args[0]
    assert predicate.args[1] == split_limit(AttentionProblem(1, 4, 2, 16, 24, 24, causal=UPPER_LEFT), H200)


def test_changing_the_crossover_changes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(4, 1024)
    picks = []
    for tiled_us in (9, 2):
        use(monkeypatch, *pair(4, 5, tiled_us))
        picks.append(only_call(routed(export(attend, *inputs))).target)
    assert picks == [SPLIT, TILED]


def test_one_kernel_is_taken_where_it_serves_the_call_and_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"l_q": 1, "l_kv": 1024, "head_dim": 16}
    one = table.Entry("cluster", entry("split", SMALL, 5, **shape).problem, ((ClusterConfig(8, 256, 4, 1), 3.0),))
    use(monkeypatch, entry("split", SMALL, 5, **shape), one)
    q, k, v = tensors(1, 1024)
    node = only_call(routed(export(attend, q, k, v)))
    assert node.target is CLUSTER
    assert node.args[10:] == (8, 256, 4, 1)
    # Keys that do not follow each other in memory are for two kernels.
    strided = torch.stack((k, k), dim=3)[:, :, :, 0]
    assert only_call(routed(export(attend, q, strided, v))).target is SPLIT


# The tables in the repository

TABLES = sorted(table.FORMAT.folder.glob("sm_*.json"))


def recorded(path: pathlib.Path) -> dict[AttentionProblem, dict[tuple[str, tuple[int, ...]], float]]:
    """Microseconds of every kernel and configuration that was measured, by problem; read without our own parser."""
    found: dict[AttentionProblem, dict[tuple[str, tuple[int, ...]], float]] = {}
    # Of two kernels or one a step decides, not their own time: tests/kernels/attention/test_tune.py.
    for entry in (each for each in json.loads(path.read_text())["entries"] if each["kernel"] != "cluster"):
        problem = AttentionProblem(**{name: entry[name] for name in entry if name not in ("kernel", "candidates")})
        times = found.setdefault(problem, {})
        times |= {(entry["kernel"], tuple(row[:-1])): row[-1] for row in entry["candidates"]}
    return found


def pick(problem: AttentionProblem, arch: str) -> tuple[str, tuple[int, ...]]:
    choice = choose(problem, TARGETS[arch])
    return choice.kernel, dataclasses.astuple(choice.config)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_measured_shape_picks_what_the_table_says(path: pathlib.Path) -> None:
    measurements = recorded(path)
    assert len(measurements) > 100
    for problem, times in measurements.items():
        kernel, config = pick(problem, path.stem)
        of_kernel = {row: us for (name, row), us in times.items() if name == kernel}
        assert of_kernel[config] == min(of_kernel.values()), problem


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_no_pick_is_slower_than_the_best_measured(path: pathlib.Path) -> None:
    """By more than 3%, over the configurations of both kernels. Every shape had something to choose from."""
    for problem, times in recorded(path).items():
        assert len(times) > 1
        assert times[pick(problem, path.stem)] <= 1.03 * min(times.values()), problem


def test_there_is_a_table_for_the_h200() -> None:
    assert "sm_90" in [path.stem for path in TABLES]


# No thresholds in code


_ORDER = ast.Lt | ast.LtE | ast.Gt | ast.GtE


def thresholds(source: str) -> list[str]:
    """Comparisons of order, minima and maxima that involve an integer greater than one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare) and any(
            isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops
        ):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max", "range"):
            parts = node.args
        if any(_has_number(part) for part in parts):
            found.append(ast.unparse(node))
    return found


def _has_number(part: ast.expr) -> bool:
    numbers = (node.value for node in ast.walk(part) if isinstance(node, ast.Constant))
    return any(type(number) is int and number > 1 for number in numbers)


@pytest.mark.parametrize(
    "module", [route, simplify, recognize_mask, repeated_heads, attention_rule], ids=lambda module: module.__name__
)
def test_no_threshold_stands_in_the_pass(module: types.ModuleType) -> None:
    source = inspect.getsource(module)
    assert thresholds(source) == []
    numbers = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    # Ranks, axes and the number of a result; no length, head_dim or block size is that small.
    assert {number for number in numbers if type(number) is int} <= set(range(6))


@pytest.mark.parametrize(
    "source", ["if l_q <= 16: pass", "x = split if 1 < l_q < 9 else tiled", "limit = min(l_q, 16)", "l_kv > 2 * l_q"]
)
def test_a_threshold_would_be_found(source: str) -> None:
    assert thresholds(source)
    assert not thresholds("if l_q <= limit and rank == 4: pass")
