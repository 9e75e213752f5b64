"""Which configurations there are, and which one a call gets."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etcuda.kernels.common.tables import Entry, Table
from etcuda.kernels.dense.check import check_launch
from etcuda.kernels.dense.choose import select, table
from etcuda.kernels.dense.choose.configs import DenseConfig, LibraryConfig, candidates
from etcuda.kernels.dense.choose.tune import TUNING
from etcuda.kernels.dense.problem import DenseProblem
from etcuda.target import TARGETS

H200 = TARGETS["sm_90"]
QKV = DenseProblem(1, 6144, 4096)
FIRST, SECOND = DenseConfig(4, 1024, 4, 0), DenseConfig(2, 4096, 4, 4)


def measured(*rows: tuple[int, DenseProblem, list[tuple[DenseConfig, float]], float]) -> table.Table:
    """A table of pairs of ours and the library's time."""
    entries: list[table.Entry] = []
    for m, problem, configs, library in rows:
        here = dataclasses.replace(problem, m=m)
        entries.append(Entry("matvec", here, tuple(configs), 1))
        entries.append(Entry("library", here, ((LibraryConfig(1300), library),), 1))
    return Table("sm_90", {"gpu": "a GPU"}, tuple(entries))


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "load", lambda arch: None)


@pytest.mark.parametrize("m", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 14336), (1024, 1000), (3, 8), (257, 25088)])
@pytest.mark.parametrize("gated", [0, 1])
def test_candidates_can_be_launched(m: int, shape: tuple[int, int], gated: int) -> None:
    n, k = shape
    found = candidates(DenseProblem(m, n, k, gated), H200)
    assert found
    assert len(set(found)) == len(found)
    x, weight = torch.empty(m, k, device="meta"), torch.empty(n, k, device="meta")
    for config in found:
        check_launch(x, weight, config.launch(m, 132, 1))
        # Lanes lie along the columns, eight each, so that both tiles have one layout.
        assert config.block_k >= 256 * config.num_warps
        assert (config.ctas_per_sm > 0) <= (config.block_k >= k)


def test_without_a_table_the_model_chooses() -> None:
    choice = select.choose(QKV, H200)
    assert choice.config == candidates(QKV, H200)[0]
    assert choice.source == "the model, since there is no table for sm_90"
    assert select.most_tokens(QKV, H200) == select.UNMEASURED_TOKENS


def test_the_nearest_measured_shape_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    other = DenseProblem(1, 1024, 2048)
    found = measured(
        (1, QKV, [(FIRST, 12.0), (SECOND, 13.0)], 15.0), (1, other, [(DenseConfig(2, 512, 2, 0), 2.0)], 5.0)
    )
    monkeypatch.setattr(table, "load", lambda arch: found)
    choice = select.choose(dataclasses.replace(QKV, n=5120), H200)
    assert choice.config == FIRST
    assert choice.source == "measured on a GPU, nearest shape M 1 N 6144 K 4096"
    assert select.choose(DenseProblem(1, 2048, 2048), H200).config == DenseConfig(2, 512, 2, 0)
    # A configuration that the problem cannot take, for it keeps fewer columns than there are, is passed over.
    kept = measured((1, QKV, [(SECOND, 11.0), (FIRST, 12.0)], 15.0))
    monkeypatch.setattr(table, "load", lambda arch: kept)
    assert select.choose(dataclasses.replace(QKV, k=5120), H200).config == FIRST


def test_the_kernel_is_taken_up_to_where_the_library_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(m, QKV, [(FIRST, us)], library) for m, us, library in ((1, 12.0, 15.0), (2, 13.0, 15.0), (4, 16.0, 15.0))]
    found = measured(*rows)
    monkeypatch.setattr(table, "load", lambda arch: found)
    assert select.most_tokens(QKV, H200) == 2
    found = measured(*rows[:2])
    assert select.most_tokens(QKV, H200) == 8
    found = measured((1, QKV, [(FIRST, 16.0)], 15.0))
    assert select.most_tokens(QKV, H200) == 0


def test_what_the_tuner_measures() -> None:
    seen = [each for group in TUNING.problems() for each in group]
    assert len(set(seen)) == len(seen)
    assert {kernel for kernel, _ in seen} == {"matvec", "library"}
    for kernel, problem in seen:
        configs = TUNING.candidates(kernel, problem, H200)
        assert configs
        jobs = {TUNING.job(kernel, problem, config) for config in configs}
        assert all(job.problem.k == problem.k for job in jobs)
        assert TUNING.num_sets(problem) * problem.weight_bytes >= min(160 << 20, 64 * problem.weight_bytes)
        assert TUNING.num_calls(problem, TUNING.num_sets(problem)) >= TUNING.num_sets(problem)


def test_a_table_survives_its_file() -> None:
    found = measured((1, QKV, [(FIRST, 12.0), (SECOND, 13.0)], 15.0))
    assert table.FORMAT.from_json(table.FORMAT.to_json(found), "here").entries == found.entries
