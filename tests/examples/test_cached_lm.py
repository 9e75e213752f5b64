"""The cached models of transformers, in eager, against the same models without a cache."""

from __future__ import annotations

import pytest
import torch

from examples.cached_lm import CachedLM, gemma3
from examples.models import CASES, relative_error, run_eager


def uncached(model: CachedLM, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of a whole sequence at once; transformers makes its mask for it."""
    with torch.no_grad():
        logits: torch.Tensor = model.lm.model(input_ids=tokens, use_cache=False).logits
    return logits


@pytest.mark.parametrize("name", ["qwen3-fp32", "gemma3-fp32"])
def test_calls_one_after_the_other_are_one_sequence(name: str) -> None:
    case = CASES[name]
    model, calls = case.model(), case.session(case.dtype)
    assert isinstance(model, CachedLM)
    outputs = run_eager(model, calls)
    expected = uncached(model, torch.cat([call.inputs[0] for call in calls], dim=1))
    assert relative_error([torch.cat(outputs, dim=1)], [expected]) < 1e-5
    assert relative_error(run_eager(model, calls), outputs) == 0
    converted = model.convert(torch.float64)
    assert {b.dtype for n, b in converted.named_buffers() if "key_cache" in n} == {torch.float64}
    assert relative_error([run_eager(converted, calls)[-1].float()], [outputs[-1]]) < 1e-5


def test_the_session_reaches_beyond_the_window() -> None:
    """What the cases of gemma3 rely on: with a window as long as the cache the outputs differ."""
    calls = CASES["gemma3-fp32"].session(torch.float32)
    models = []
    for window in (16, 64):
        torch.manual_seed(0)
        models.append(gemma3(torch.float32, 64, 512))
        models[-1].lm.model.config.sliding_window = window
    short, long = (run_eager(model, calls) for model in models)
    assert relative_error(short[:1], long[:1]) > 1e-3
    assert relative_error([short[0][:, :16]], [long[0][:, :16]]) == 0
    assert relative_error(short[-1:], long[-1:]) > 1e-3
