"""ExecuTorch's backend test suite: one test through its own runner, and a sample of every file in one export."""

from __future__ import annotations

import pathlib

import pytest
import torch

from tests.suite.cases import Recorder, cases_of, file_names, functions_of
from tests.suite.flow import make_flow
from tests.suite.run import in_python, try_cases

# Whose models are long to compile, or need what is not served yet; docs/operators.md has them.
NOT_SAMPLED = {"lstm", "adaptive_avgpool3d", "adaptive_maxpool3d", "embedding_bag"}


@pytest.fixture(scope="module")
def runs_programs() -> None:
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < (2, 14):
        pytest.skip("ExecuTorch's Python runtime needs torch 2.14")


def test_the_suites_own_runner_takes_the_flow(runs_programs: None) -> None:
    from executorch.backends.test.suite.reporting import TestResult
    from executorch.backends.test.suite.runner import run_test

    import etcuda.runtime  # noqa: F401  (registers the delegate)

    recorder = Recorder()
    (function,) = [f for name, f, _, _ in functions_of("glu") if name == "test_glu_f32_dim_last"] or [
        functions_of("glu")[-1][1]
    ]
    function(recorder, **({"dtype": torch.float32} if "dtype" in function.__code__.co_varnames else {}))
    model, inputs, _ = recorder.calls[0]
    summary = run_test(model, inputs, make_flow("host"), "test_glu", "test_glu", 0, None)
    assert summary.result == TestResult.SUCCESS, summary.error
    assert summary.is_delegated()


@pytest.mark.slow
def test_one_case_of_every_file_is_right_on_the_host(runs_programs: None, tmp_path: pathlib.Path) -> None:
    cases = [next(iter(cases_of(file, torch.float32))) for file in file_names() if file not in NOT_SAMPLED]
    assert len(cases) > 70
    records = try_cases(cases, "host", tmp_path, in_python)
    assert {key: r.error or r.wrong for key, r in records.items() if r.error or r.wrong} == {}
