"""Which weights are quantised, and what a quantised model says."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from etcuda import Int4CoalescedTensor, Int8CoalescedTensor, llm
from etcuda.errors import CheckpointError
from etcuda.llm.checkpoint import read_config
from etcuda.llm.experts import refuse, top_k
from etcuda.llm.export import ExportOptions, export, load_model
from etcuda.llm.model import TextModel, empty_model
from etcuda.llm.quantization import Plan, QuantOptions, decode_bytes, stored_bytes
from tests.exhaustive import only
from tests.llm.architectures import greedy, prompt, reference

Checkpoint = Callable[[str], pathlib.Path]


def formats(name: str, options: QuantOptions, **changes: Any) -> dict[str, str]:
    return dict(Plan(empty_model(reference(name, **changes).config, torch.float32), options).formats)


def quantised(folder: pathlib.Path, options: QuantOptions) -> tuple[ExportOptions, TextModel]:
    chosen = ExportOptions(target="host", dtype="fp32", max_seq_len=64, chunk=16, quant=options)
    model, layers = load_model(folder, read_config(folder), chosen, lambda done, total: None)
    return chosen, TextModel(model, layers).eval()


def test_linear_layers_and_rules() -> None:
    every = formats("llama", QuantOptions("int4"))
    assert set(every.values()) == {"int4"}
    assert len(every) == 2 * 7 + 1
    assert "lm_head.weight" in every
    assert "model.embed_tokens.weight" not in every
    rules = (("lm_head", "int8"), ("model.layers.0.*", "none"), ("*.down_proj", "int8"), ("model.embed_tokens", "int4"))
    some = formats("llama", QuantOptions("int4", rules))
    assert some["lm_head.weight"] == some["model.layers.1.mlp.down_proj.weight"] == "int8"
    assert some["model.embed_tokens.weight"] == some["model.layers.1.mlp.up_proj.weight"] == "int4"
    assert not any(name.startswith("model.layers.0.") for name in some)


def test_experts_are_quantised_with_the_layers_or_by_rules() -> None:
    every = formats("qwen3_moe", QuantOptions("int4"))
    names = [f"model.layers.{layer}.mlp.experts.{part}_proj" for layer in (0, 1) for part in ("gate_up", "down")]
    assert {every[name] for name in names} == {"int4"}
    # The router stays as it is.
    assert not any(name.endswith("mlp.gate.weight") for name in every)
    rules = (("*.0.mlp.experts", "none"), ("*.mlp.experts", "int8"))
    some = formats("qwen3_moe", QuantOptions("int4", rules))
    assert [some.get(name) for name in names] == [None, None, "int8", "int8"]
    assert set(formats("qwen3_moe", QuantOptions(rules=rules))) == set(names[2:])
    biased = formats("gpt_oss", QuantOptions("int4"))
    assert {biased[name] for name in names} == {"int4"}
    assert not any(name.endswith("_bias") for name in biased)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gpt_oss", {"swiglu_limit": 5.0}, "its gate is computed by code of its own"),
        ("mixtral", {"hidden_act": "relu"}, "its activation is a ReLU"),
    ],
)
def test_experts_that_no_kernel_computes_stay_as_they_are(name: str, changes: dict[str, Any], reason: str) -> None:
    assert not any("experts" in each for each in formats(name, QuantOptions("int4"), **changes))
    with pytest.raises(
        CheckpointError, match=rf"0\.mlp\.experts: expected experts that can be quantised, but {reason}"
    ):
        formats(name, QuantOptions("int4", (("*.experts", "int8"),)), **changes)


def test_the_number_of_a_tokens_experts() -> None:
    assert top_k(reference("mixtral").config) == top_k(reference("gemma4_text experts").config) == 2
    with pytest.raises(CheckpointError, match="model_type 'llama': expected a token's number of experts as one of"):
        top_k(reference("llama").config)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [("has_gate", False, "its experts have no gate"), ("has_post_expert_norm", True, "its experts have norms")],
)
def test_what_the_operator_does_not_compute(attribute: str, value: bool, reason: str) -> None:
    mixture = empty_model(reference("mixtral").config, torch.float32).model.layers[0].mlp.experts
    assert refuse(mixture) is None
    setattr(mixture, attribute, value)
    assert refuse(mixture) == reason


def test_a_tied_head_has_one_format_with_the_embedding() -> None:
    assert formats("qwen3", QuantOptions("int4"))["model.embed_tokens.weight"] == "int4"
    rules = (("model.embed_tokens", "int8"),)
    assert formats("qwen3", QuantOptions("int4", rules))["model.embed_tokens.weight"] == "int4"
    assert "model.embed_tokens.weight" not in formats("qwen3", QuantOptions("int4", (("lm_head", "none"),)))


def test_weights_are_quantised_as_they_are_read(checkpoint: Checkpoint) -> None:
    _, model = quantised(checkpoint("qwen3"), QuantOptions("int4", (("*.o_proj", "int8"), ("*.q_proj", "none"))))
    layer = model.model.model.layers[1]
    assert isinstance(layer.mlp.up_proj.weight, Int4CoalescedTensor)
    assert isinstance(layer.self_attn.o_proj.weight, Int8CoalescedTensor)
    assert type(layer.self_attn.q_proj.weight) is torch.nn.Parameter
    assert model.model.lm_head.weight is model.model.model.embed_tokens.weight
    assert isinstance(model.model.lm_head.weight, Int4CoalescedTensor)
    whole = reference("qwen3").state_dict()["model.layers.1.mlp.up_proj.weight"]
    error = (layer.mlp.up_proj.weight.dequantize() - whole).norm() / whole.norm()
    assert 0.01 < float(error) < 0.12


def test_bytes(checkpoint: Checkpoint) -> None:
    _, model = quantised(checkpoint("llama"), QuantOptions("int8"))
    embedding = 512 * 64 * 4
    assert decode_bytes(model.model) == sum(map(stored_bytes, model.model.parameters())) - embedding
    # 8 bits and a scale of 16 for 32.
    assert stored_bytes(model.model.lm_head.weight) == 512 * 64 * 8.5 / 8


@pytest.mark.slow
@pytest.mark.parametrize("name", [only(False, "llama"), "qwen3_moe"])
def test_an_int4_program_says_what_its_model_does(name: str, checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    options, model = quantised(checkpoint(name), QuantOptions("int4", activation_dtype="exact"))
    export(checkpoint(name), tmp_path / "m.pte", options)
    program = llm.load(tmp_path / "m.pte")
    assert program.program.weight_bytes == sum(map(stored_bytes, model.model.parameters()))
    tokens = prompt(20, seed=2)
    made = program.generate(tokens, max_new_tokens=12, ignore_eos=True)
    made.text()
    dequantised = reference(name)
    for key, value in model.model.state_dict().items():
        if isinstance(value, Int4CoalescedTensor):
            dequantised.get_parameter(key).copy_(value.dequantize())
    assert made.tokens == greedy(dequantised, tokens, 12)
    assert made.tokens != greedy(reference(name), tokens, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": "int3"}, r"quant: expected none, int4, int8, got 'int3'"),
        ({"rules": (("lm_head", "fp4"),)}, r"quant rule lm_head: expected none, int4, int8, got 'fp4'"),
        ({"group_size": 33}, r"quant: .*group_size: expected one of .*, got 33"),
        ({"activation_dtype": "fp8"}, r"activation_dtype: expected 'int8' or 'exact', got 'fp8'"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        QuantOptions(**options)  # type: ignore[arg-type]


def test_what_cannot_be_quantised_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"rule 'lm_haed': expected the name of a linear layer or an embedding"):
        formats("llama", QuantOptions("int4", (("lm_haed", "int8"),)))
    with pytest.raises(CheckpointError, match=r"c_attn and 7 more: expected linear layers, got those of GPT-2"):
        formats("gpt2", QuantOptions("int4"))
    assert list(formats("gpt2", QuantOptions(rules=(("lm_head", "int8"),)))) == ["transformer.wte.weight"]
    with pytest.raises(CheckpointError) as caught:
        formats("llama", QuantOptions("int4", group_size=128))
    assert str(caught.value).count("expected K to be a multiple of 128") == 2 * 6 + 1


def test_layers_of_one_row_stay_unless_a_rule_has_them() -> None:
    gate = "model.layers.0.mlp.shared_expert_gate.weight"
    assert gate not in formats("qwen3_next", QuantOptions("int4"))
    assert formats("qwen3_next", QuantOptions("int4", (("*.shared_expert_gate", "int8"),)))[gate] == "int8"
