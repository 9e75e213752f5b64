"""Norms and gates of whole models are joined with the rounding behind them, and the models compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from examples.cached_lm import CachedLM
from examples.models import INT4_CASES
from tests.exhaustive import only
from tests.passes.linear.activation_programs import arguments
from tests.passes.linear.quantized_programs import calls, lowered, runnable

TOKENS = torch.arange(4)
# Of a block: two norms, one gate; and the norm in front of the vocabulary.
LAYERS = 2


def exported(name: str) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """A prompt of four tokens: all products take few rows."""
    model = INT4_CASES[f"{name}-int4-bf16"].model()
    inputs = {"input_ids": TOKENS.unsqueeze(0)}
    if not isinstance(model, CachedLM):
        return torch.export.export(model, tuple(inputs.values())), inputs
    inputs["cache_position"] = TOKENS
    model.reset()
    with torch.no_grad():
        return torch.export.export(model, tuple(inputs.values()), strict=True), inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cast_first", "offset", "activation"),
    [("llama", True, 0.0, "silu"), only(False, "qwen3", True, 0.0, "silu"), ("gemma3", False, 1.0, "gelu_tanh")],
)
def test_models_of_transformers(name: str, cast_first: bool, offset: float, activation: str) -> None:
    # Attention stays its formula: its kernels do not run here.
    fused, plain = (
        lowered(exported(name)[0], without=("route_attention", *without)) for without in ((), ("fuse_quantize",))
    )
    norms = [arguments(node) for node in calls(fused, "rms_norm_quantize")]
    assert len(norms) == 2 * LAYERS + 1
    assert [(each["cast_first"], each["weight_offset"]) for each in norms] == [(cast_first, offset)] * len(norms)
    assert [each["residual"] is not None for each in norms] == [False] + [True] * 2 * LAYERS
    # The sum behind the last layer is read by its norm alone.
    assert [each["keep_h"] for each in norms] == [False] + [True] * (2 * LAYERS - 1) + [False]
    assert not any(each["keep_y"] for each in norms)
    gates = [arguments(node) for node in calls(fused, "gate_quantize")]
    assert [(each["activation"], each["up"], each["keep_y"]) for each in gates] == [(activation, None, False)] * LAYERS
    # What attention returns is rounded by itself.
    assert len(calls(fused, "quantize_activation")) == LAYERS
    inputs = exported(name)[1]
    got, wanted = (
        runnable(each)(*(inputs[name] for name in each.graph_signature.user_inputs)) for each in (fused, plain)
    )
    assert torch.equal(got, wanted)
