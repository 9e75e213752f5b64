"""Attention of language models with a soft cap, sinks and rings goes to the kernels, and reads no mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Node

from etcuda.kernels.attention.problem import POSITIONS
from etcuda.llm.methods import export_methods
from etcuda.llm.model import TextModel, empty_model, fill_buffers, find_layers
from examples.models import relative_error
from tests.llm.architectures import WINDOW, prompt, reference
from tests.llm.dequantised import state_for
from tests.passes.attention.attention_routing import SPLIT, TILED, calls, masking, routed, runnable
from tests.passes.made_weights import made_weights

pytestmark = pytest.mark.usefixtures("no_table")

_CHUNK = 24
_RING = WINDOW + _CHUNK - 1


def text_model(name: str) -> TextModel:
    whole = reference(name)
    model = empty_model(whole.config, torch.bfloat16)
    layers = find_layers(model, 64, _CHUNK)
    fill_buffers(model)
    model.load_state_dict(state_for(model, whole.bfloat16()), assign=True)
    model.tie_weights()
    return TextModel(model, layers).eval()


def described(node: Node) -> tuple[Any, ...]:
    """Window, soft cap, slots of the ring or 0, and whether there are sinks; nothing else restricts the keys."""
    assert masking(node)[:4] == (False, False, True, POSITIONS)
    keys: Any = node.args[1]
    ring = keys.meta["val"].shape[2] if node.kwargs.get("ring") else 0
    return masking(node)[4], node.args[9], ring, node.kwargs.get("sinks") is not None


def traced(model: TextModel, length: int) -> Any:
    inputs = (torch.tensor([prompt(length)]), torch.arange(length))
    with torch.no_grad():
        return torch.export.export(model, inputs, strict=False)


@pytest.mark.slow
def test_a_soft_cap_and_a_ring() -> None:
    found = calls(routed(traced(text_model("gemma2"), 1)))
    assert [(node.target, described(node)) for node in found] == [
        (SPLIT, (WINDOW, 2.0, _RING, False)),
        (SPLIT, (0, 2.0, 0, False)),
    ]


@pytest.mark.slow
def test_sinks_and_a_ring() -> None:
    model, expected = text_model("gpt_oss"), [(WINDOW, 0.0, _RING, True), (0, 0.0, 0, True)]
    tokens, positions = torch.tensor([prompt(_CHUNK)]), torch.arange(_CHUNK)
    program = routed(export_methods(model, _CHUNK, _CHUNK)["prefill"])
    found = calls(program)
    assert [node.target for node in found] == [SPLIT, TILED] * 2
    assert [described(node) for node in found] == [each for each in expected for _ in range(2)]
    with made_weights(program), torch.no_grad():
        run = runnable(program)
        for start in (0, _CHUNK):
            where = positions + start
            assert relative_error([run(tokens=tokens, positions=where)], [model(tokens, where)]) < 5e-2
