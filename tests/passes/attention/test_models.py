"""Attention of whole models goes to the kernels, and their masks become arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import Dim

from etcuda.kernels.attention.problem import POSITIONS, UPPER_LEFT
from examples.models import CASES, relative_error, run_eager
from tests.exhaustive import only
from tests.partitioner.programs import Calls
from tests.passes.attention.attention_routing import BF16, SPLIT, TILED, calls, masking, routed, runnable

pytestmark = pytest.mark.usefixtures("no_table")


def transformers_model(name: str) -> torch.nn.Module:
    import transformers

    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]} if name == "Gemma3" else {}
    config = getattr(transformers, config_name)(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=128,
        attn_implementation="sdpa",
        use_cache=False,
        **layers,
    )
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    return model.to(BF16).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "windows"), [only(False, "Llama", [0, 0]), ("Gemma3", [16, 0])])
def test_models_of_transformers(name: str, windows: list[int]) -> None:
    model = transformers_model(name)
    module = Calls(lambda ids: model(input_ids=ids)["logits"])
    module.model = model  # registers the weights
    length = Dim("length", min=2, max=128)
    with torch.no_grad():
        program = torch.export.export(module, (torch.arange(40)[None],), dynamic_shapes=(({1: length},),))
    program = routed(program)
    found = calls(program)
    assert [node.target for node in found] == [SPLIT, TILED] * 2
    assert [masking(node) for node in found[::2]] == [(False, False, False, UPPER_LEFT, window) for window in windows]
    for node in found:
        keys: Any = node.args[1]
        assert keys.meta["val"].shape[1] == 2
    for size in (2, 16, 17, 100):
        ids = torch.randint(0, 64, (1, size))
        with torch.no_grad():
            expected = model(input_ids=ids)["logits"].double()
            got = runnable(program)(inputs_0=ids).double()
        assert float((got - expected).norm() / expected.norm()) < 3e-2


def test_the_demo_decoder() -> None:
    case = CASES["decoder-bf16"]
    ctas = case.export(case.model())
    prefill = routed(ctas["prefill"])
    assert {node.target for node in calls(prefill)} == {SPLIT, TILED}
    decode = routed(ctas["decode"])
    assert {node.target for node in calls(decode)} == {SPLIT}
    for node in (*calls(prefill), *calls(decode)):
        assert masking(node) == (False, False, True, POSITIONS, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "windows"), [only(False, "qwen3", [0, 0]), ("gemma3", [16, 0])])
def test_models_with_a_static_cache(name: str, windows: list[int]) -> None:
    case = CASES[f"{name}-bf16"]
    model, session = case.model(), case.session(BF16)
    ctas = {method: routed(program) for method, program in case.export(model).items()}
    found = calls(ctas["prefill"])
    assert [node.target for node in found] == [SPLIT, TILED] * 2
    assert [masking(node) for node in found[::2]] == [(False, False, True, POSITIONS, window) for window in windows]
    one = calls(ctas["decode"])
    assert [node.target for node in one] == [SPLIT] * 2
    assert [masking(node) for node in one] == [(False, False, True, POSITIONS, window) for window in windows]
    # The delegates of the two methods share their caches; these two programs do not.
    tokens, positions = session[0].inputs
    (expected,) = run_eager(model, session[:1])
    assert relative_error([runnable(ctas["prefill"])(input_ids=tokens, cache_position=positions)], [expected]) < 2e-2
    decode = runnable(ctas["decode"])
    for index in range(20):
        got = decode(input_ids=tokens[:, index : index + 1], cache_position=positions[index : index + 1])
        assert relative_error([got[:, 0]], [expected[:, index]]) < 3e-2
