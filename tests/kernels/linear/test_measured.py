"""Choices from a measured table: what may not depend on the weight's rows, and what that costs."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.linear.choose import measured, table
from etcuda.kernels.linear.choose.configs import MatmulConfig, MatvecConfig
from etcuda.kernels.linear.choose.measured import MOST_RANGES, Range, estimates
from etcuda.kernels.linear.choose.select import choose_matmul, choose_matvec, matmul_ranges, matvec_limit
from etcuda.kernels.linear.choose.table import Entry, Table
from etcuda.kernels.linear.problem import MAX_TOKENS, LinearProblem

DEVICE = LocalDevice("sm_90", 132, 227 << 10)
TABLES = sorted(table.FOLDER.glob("int*/*.json"))
# What one split of sums for every N costs at most, of the time of the best one measured for each N.
MOST_LOSS = 1.05

Use = Callable[[Table | None], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    return lambda made: monkeypatch.setattr(table, "load", lambda name, arch: made)


def name(path: pathlib.Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_one_split_for_every_number_of_rows_costs_little(path: pathlib.Path) -> None:
    found = table.from_json(path.read_text(), str(path))
    device = LocalDevice(found.arch, int(found.environment["num_sms"]), 227 << 10)
    losses = {}
    for entry in found.of("matvec"):
        config = choose_matvec(entry.problem, device, entry.pdl).config
        losses[entry.problem] = dict(entry.candidates)[config] / entry.us
    assert losses
    assert max(losses.values()) <= MOST_LOSS, {p: loss for p, loss in losses.items() if loss > MOST_LOSS}


@pytest.mark.parametrize("path", [*TABLES, None], ids=lambda path: name(path) if path else "no table")
@given(st.integers(1, 300_000), st.integers(1, 700), st.integers(1, 40), st.sampled_from([2, 4]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_does_not_depend_on_n(
    path: pathlib.Path | None, n: int, blocks: int, m: int, size: int, eight: bool
) -> None:
    """For weights of any N and K: how a row's sum is split, and where one kernel gives way to another."""
    format_name = path.parent.name if path else "int8" if eight else "int4"
    device = LocalDevice(path.stem if path else "sm_89", 132, 227 << 10)
    one = LinearProblem(m, n, 32 * blocks, format_name, offset="symmetric", itemsize=size)
    other = dataclasses.replace(one, n=4096)
    assert matvec_limit(one, device) == matvec_limit(other, device)
    arguments = (device, 1, None, m)
    assert matmul_ranges(one, *arguments) == matmul_ranges(other, *arguments)
    if m <= MAX_TOKENS:
        first, second = (choose_matvec(each, device).config for each in (one, other))
        assert isinstance(first, MatvecConfig)
        assert isinstance(second, MatvecConfig)
        assert first.split == second.split
    if path and size == 2:
        found = table.from_json(path.read_text(), str(path))
        pays = [
            measured.quantizing_before_pays(found, dataclasses.replace(each, m=1), 1, 0.01 * m) for each in (one, other)
        ]
        assert pays[0] == pays[1]
        after = [measured.best_matvec(found, dataclasses.replace(each, m=1), 1, quantized=1) for each in (one, other)]
        assert (after[0] is None) == (after[1] is None)
        if after[0] is not None and after[1] is not None:
            assert after[0][0].split == after[1][0].split
            assert after[0][0].quantized


def entry(kernel: str, m: int, n: int, k: int, *candidates: tuple[table.Config, float]) -> Entry:
    rows = tuple(sorted(candidates, key=lambda row: row[1]))
    return Entry(kernel, LinearProblem(m, n, k), rows, 1)  # type: ignore[arg-type]


A, B, C = (MatvecConfig(0, 0, 4, blocks, blocks // 32, 1, 0) for blocks in (32, 64, 128))
MANY, FEW = (MatvecConfig(0, 1, 4, 128, 4, 1, ctas_per_sm) for ctas_per_sm in (16, 2))


def made(*entries: Entry) -> Table:
    return Table("sm_90", {"num_sms": 132}, entries)


def test_the_split_that_loses_least_over_all_n(use: Use) -> None:
    # A and C are best at one end each; B is a little slower than either at both.
    use(made(
        entry("matvec", 1, 1024, 4096, (A, 1.0), (B, 1.1), (C, 2.0)),
        entry("matvec", 1, 65536, 4096, (C, 10.0), (B, 11.0), (A, 20.0)),
    ))  # fmt: skip
    problem = LinearProblem(1, 1024, 4096)
    assert [choose_matvec(dataclasses.replace(problem, n=n), DEVICE).config for n in (8, 1024, 1 << 18)] == [B] * 3
    # Of one split, the number of CTAs is free.
    use(made(
        entry("matvec", 1, 1024, 4096, (FEW, 1.0), (MANY, 1.1), (A, 0.9)),
        entry("matvec", 1, 65536, 4096, (MANY, 10.0), (FEW, 11.0), (A, 12.0)),
    ))  # fmt: skip
    assert [choose_matvec(dataclasses.replace(problem, n=n), DEVICE).config for n in (8, 1 << 18)] == [FEW, MANY]


def test_the_nearest_k_decides_alone(use: Use) -> None:
    use(made(
        entry("matvec", 1, 1024, 2048, (A, 1.0), (B, 1.5)),
        entry("matvec", 1, 65536, 8192, (B, 1.0), (A, 1.5)),
    ))  # fmt: skip
    for n in (16, 1024, 65536):
        found = [choose_matvec(LinearProblem(1, n, k), DEVICE).config for k in (2048, 3072, 8192)]
        assert found == [A, A, B]


def test_a_split_that_was_not_measured_everywhere_counts_as_the_slowest(use: Use) -> None:
    use(made(
        entry("matvec", 1, 1024, 4096, (A, 1.0), (B, 1.2)),
        entry("matvec", 1, 65536, 4096, (B, 1.0), (C, 3.0)),
    ))  # fmt: skip
    assert choose_matvec(LinearProblem(1, 1024, 4096), DEVICE).config == B


def test_the_limit_is_that_of_all_n_together(use: Use) -> None:
    tall = MatmulConfig(64, 16, 8, 4, 3, 1)
    slow = [
        entry("matvec", 4, 1024, 4096, (B, 1.0)), entry("matmul", 4, 1024, 4096, (tall, 1.5)),
        entry("matvec", 4, 65536, 4096, (B, 10.0)), entry("matmul", 4, 65536, 4096, (tall, 8.0)),
    ]  # fmt: skip
    use(made(*slow))
    assert [matvec_limit(LinearProblem(1, n, 4096), DEVICE) for n in (16, 1024, 65536)] == [8, 8, 8]
    use(made(*slow[:3], entry("matmul", 4, 65536, 4096, (tall, 5.0))))
    assert [matvec_limit(LinearProblem(1, n, 4096), DEVICE) for n in (16, 1024, 65536)] == [2, 2, 2]
    assert matvec_limit(LinearProblem(1, 1024, 4096, activation_dtype="exact"), DEVICE) == 0


def tile(block_m: int, ctas_per_sm: int = 1) -> MatmulConfig:
    return MatmulConfig(128, block_m, 4, 8, 3, ctas_per_sm)


def products(*rows: tuple[int, float]) -> list[Entry]:
    """Tiles as high as the rows, up to 256."""
    return [entry("matmul", m, 65536, 4096, (tile(min(m, 256)), us)) for m, us in rows]


def test_boundaries_follow_the_table(use: Use) -> None:
    problem = LinearProblem(1, 777, 4096)

    def ends(*rows: tuple[int, float]) -> list[int | None]:
        use(made(*products(*rows)))
        return [each.most for each in matmul_ranges(problem, DEVICE, 9, None, 16)]

    # A tile for 64 rows costs 16 nothing here, and there twice as much.
    assert ends((16, 10.0), (32, 10.0), (64, 10.0), (128, 15.0), (256, 20.0)) == [64, 128, None]
    assert ends((16, 10.0), (32, 12.0), (64, 20.0), (128, 21.0), (256, 22.0)) == [16, 32, None]
    assert ends((16, 10.0), (128, 20.0)) == [16, None]
    # Two tiles for 64 rows are as good as one for 128.
    assert ends((16, 10.0), (32, 10.0), (64, 10.0), (128, 20.0), (256, 40.0)) == [None]
    assert ends((128, 20.0)) == [None]


def test_ranges_within_bounds(use: Use) -> None:
    use(made(*products((16, 10.0), (32, 11.0), (64, 12.0), (256, 100.0))))
    problem = LinearProblem(1, 777, 4096)

    def cut(least: int, most: int | None, typical: int) -> list[Range]:
        return matmul_ranges(problem, DEVICE, least, most, typical)

    assert cut(300, 300, 300) == [Range(300, (300,))]
    assert cut(9, 16, 12) == [Range(16, (12,))]
    assert cut(17, 40, 20) == [Range(32, (20,)), Range(40, (40,))]
    assert cut(0, 0, 0) == [Range(0, (1,))]
    assert cut(40, None, 5000)[-1].rows[-1] == 5000


@given(
    st.lists(st.tuples(st.sampled_from([16, 32, 64, 128, 256, 512, 2048]), st.floats(1, 1e4)), min_size=1, max_size=7),
    st.integers(0, 300), st.integers(0, 3000), st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_ranges_of_any_table(rows: list[tuple[int, float]], least: int, more: int, bounded: bool) -> None:
    found = made(*products(*dict(rows).items()))
    most = least + more if bounded else None
    cut = measured.ranges(found, LinearProblem(1, 5, 4096), least, most, least, 1)
    assert 1 <= len(cut) <= MOST_RANGES
    assert cut[-1].most == most
    ends = [each.most for each in cut[:-1]]
    assert all(end is not None and end >= least and (most is None or end < most) for end in ends)
    assert ends == sorted(set(ends), key=lambda end: end or 0)
    for each in cut:
        assert all(m >= least or m == 1 for m in each.rows)
        assert all(each.most is None or m <= max(each.most, 1) for m in each.rows)


def test_estimates() -> None:
    low, high = products((16, 10.0), (128, 50.0))
    few, all_ = tile(16), tile(128)
    at = {m: estimates([low, high], m, 132) for m in (16, 20, 33, 128, 200)}
    assert at[16] == {few: 10.0, all_: 50.0}
    # Another tile along M, another time; nothing is faster than what was measured for fewer rows.
    assert at[20] == {few: 20.0, all_: 50.0}
    assert at[33] == {few: 30.0, all_: 50.0}
    assert at[128] == {few: 80.0, all_: 50.0}
    assert at[200] == {few: 130.0, all_: 100.0}
    # 64 tiles do not keep the GPU busy, so that half of them take as long.
    small = Entry("matmul", LinearProblem(256, 4096, 4096), ((tile(128), 30.0),), 1)
    assert estimates([small], 128, 132) == {tile(128): 30.0}
    assert estimates([small], 128, 16) == {tile(128): 15.0}


def test_a_number_of_rows_between_measured_ones_takes_what_wastes_least(use: Use) -> None:
    use(made(*products((16, 10.0), (64, 12.0), (128, 30.0))))
    problem = LinearProblem(1, 65536, 4096)
    heights = []
    for m in (9, 16, 17, 64, 65, 128, 129, 4096):
        config = choose_matmul(dataclasses.replace(problem, m=m), DEVICE).config
        assert isinstance(config, MatmulConfig)
        heights.append(config.block_m)
    # 65 rows are two tiles of 64 in 24 us, or one of 128 in 30. What was measured for 128 rows is taken for 128.
    assert heights == [16, 16, 64, 64, 64, 128, 64, 64]
    both = choose_matmul(problem, DEVICE, rows=(16, 64)).config
    assert both == tile(64)


@pytest.mark.parametrize("m", [4, 16, 32, 64, 128])
@pytest.mark.parametrize("shape", [(43008, 5376), (5376, 21504), (6000, 11008)], ids=str)
def test_the_kernel_for_warpgroups_is_taken_where_it_serves(m: int, shape: tuple[int, int]) -> None:
    device = LocalDevice("sm_90", 132, 227 << 10)
    problem = LinearProblem(m, *shape)
    others = [
        dataclasses.replace(problem, **change) for change in ({"group_size": 64}, {"k": 5504}, {"format_name": "int8"})
    ]
    for each in others:
        config = choose_matmul(each, device).config
        assert isinstance(config, MatmulConfig)
        assert not config.warpgroups
    taken = choose_matmul(problem, device).config
    assert isinstance(taken, MatmulConfig)
    assert taken.warpgroups
