"""Every model of the registry, exported for the host and run, against PyTorch."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
import torch

from examples.models import CASES, TOLERANCE, Decoder, relative_error, run_eager, run_fp32
from tests.exhaustive import only

Export = Callable[[str, str], pathlib.Path]
Run = Callable[[pathlib.Path, str], list[torch.Tensor]]

# By default each family in one dtype, and each dtype: what a dtype changes is in kernels and in Inductor's code, and
# the language models have int4 weights and bfloat16 in test_quantized_models.py too.
BY_DEFAULT = {"mlp-fp32", "mlp-fp16", "mlp-bf16", "decoder-fp32", "resnet18-fp16", "bert-bf16", "llama-bf16"}
BY_DEFAULT |= {"qwen3-fp32", "gemma3-bf16"}
# One group per case: its tests run in one worker, so that no worker waits for another's export.
every_case = pytest.mark.parametrize(
    "name", [only(name in BY_DEFAULT, name, marks=[pytest.mark.xdist_group(name)]) for name in CASES]
)


@every_case
def test_matches_eager(name: str, exported: Export, run_case: Run) -> None:
    case = CASES[name]
    outputs = run_case(exported(name, "host"), name)
    eager = run_eager(case.model(), case.session(case.dtype))
    assert [o.dtype for o in outputs] == [o.dtype for o in eager]
    assert relative_error(outputs, eager) < TOLERANCE[case.dtype]


@every_case
def test_low_precision_is_no_worse_than_eager(name: str, exported: Export, run_case: Run) -> None:
    case = CASES[name]
    if case.dtype == torch.float32:
        pytest.skip("fp32 is its own reference")
    reference = run_fp32(case)
    eager_error = relative_error(run_eager(case.model(), case.session(case.dtype)), reference)
    assert eager_error > 0
    assert relative_error(run_case(exported(name, "host"), name), reference) <= 1.5 * eager_error


@every_case
def test_weights_are_in_the_file_once(name: str, exported: Export) -> None:
    model = CASES[name].model()
    state = {t.data_ptr(): t for n, t in model.state_dict().items() if not n.endswith("_cache")}
    weights = sum(t.numel() * t.element_size() for t in state.values())
    assert weights < exported(name, "host").stat().st_size < 1.5 * weights + 3_000_000


def test_the_session_of_the_decoder_depends_on_state() -> None:
    """What the test above relies on: without the cache of earlier calls the outputs differ."""
    case = CASES["decoder-fp32"]
    model, calls = case.model(), case.session(case.dtype)
    assert isinstance(model, Decoder)
    together = run_eager(model, calls)
    alone = [run_eager(model, [call])[0] for call in calls]
    assert relative_error(alone[:1], together[:1]) == 0
    assert all(relative_error([a], [t]) > 1e-2 for a, t in zip(alone[1:], together[1:], strict=True))


def test_every_family_and_dtype_runs_by_default() -> None:
    assert CASES.keys() >= BY_DEFAULT
    for part in range(2):
        assert {name.split("-")[part] for name in BY_DEFAULT} == {name.split("-")[part] for name in CASES}
