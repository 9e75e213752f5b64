"""A sample of the mutated programs of ``fuzz/campaign.py``: errors or the same result, and no crash of etcuda."""

from __future__ import annotations

import pathlib

import pytest

from tests.conftest import Export

from .conftest import MakeProgram
from .fuzz import in_python
from .fuzz.campaign import Verdict, classify, in_runner, judge
from .fuzz.mutations import Edit, Mutant, Seed, mutants


@pytest.fixture(scope="module")
def seeds(exported: Export, make_program: MakeProgram, native_build: pathlib.Path) -> list[Seed]:
    """A program as it is exported, and one around the hand-written image with state and external weights."""
    image = native_build / "tests" / "runtime" / "images" / "image_sizes.so"
    external = make_program(image=str(image), external="weights", state=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    return [Seed.read(exported("mlp-fp32", "host")), Seed.read(external, external.parent / "weights.ptd")]


@pytest.fixture(scope="module")
def fuzzer(native_build: pathlib.Path) -> pathlib.Path:
    return native_build / "tests" / "runtime" / "etcuda_fuzz_programs"


def found(verdict: Verdict, count: int) -> None:
    """Checks a verdict on ``count`` mutants."""
    assert verdict.faults == []
    assert sum(verdict.counts.values()) == count
    errors = sum(n for (_, outcome), n in verdict.counts.items() if outcome == "error")
    assert errors > count // 2, verdict.table()


@pytest.mark.slow
def test_in_the_runner(seeds: list[Seed], fuzzer: pathlib.Path, tmp_path: pathlib.Path) -> None:
    cases = list(mutants(seeds, 1500, 1))
    found(judge(cases, in_runner(fuzzer, seeds, cases, tmp_path)), 1500)


@pytest.mark.slow
def test_in_the_stock_python_runtime(seeds: list[Seed], fuzzer: pathlib.Path) -> None:
    pytest.importorskip("executorch.runtime")
    cases = list(mutants(seeds, 300, 2))
    found(judge(cases, in_python.outcomes(seeds, cases, fuzzer.with_name("libetcuda_fuzz_crash_report.so"))), 300)


def test_every_kind_of_bytes_is_changed_and_the_same_seed_changes_the_same(seeds: list[Seed]) -> None:
    cases = list(mutants(seeds, 400, 1))
    assert cases == list(mutants(seeds, 400, 1))
    assert cases != list(mutants(seeds, 400, 2))
    kinds = {mutant.kind for mutant in cases}
    places = ("description", "image", "weights", "external weights", "the program")
    assert kinds >= {f"bits: {place}" for place in places} | {"truncated", "description rewritten, hash mended"}
    for mutant in cases:
        files = mutant.files(seeds[mutant.seed])
        assert files != (seeds[mutant.seed].pte, seeds[mutant.seed].ptd)


def test_what_a_verdict_calls_a_fault() -> None:
    of_etcuda, of_others = Mutant(0, "bits", (Edit(0, 1, b"2"),)), Mutant(0, "bits", (), may_change=True)
    for mutant, line, is_fault in (
        (of_etcuda, "changed", True),
        (of_others, "changed", False),
        (of_etcuda, "same", False),
        (of_etcuda, "load the bytes of weight are damaged", False),
        (of_others, "hung", True),
        (of_others, "crash 11 ours libetcuda_runtime.so+12", True),
        (of_others, "crash 11 theirs libexecutorch.so+12", False),
        (of_others, "ended -11", True),
    ):
        verdict = Verdict()
        verdict.add(0, mutant, line)
        assert bool(verdict.faults) == is_fault, line
    assert classify("execute input 0 ...") == "error"
