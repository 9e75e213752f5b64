"""Experts that are stored one by one are read as the model has them."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from etcuda.errors import CheckpointError
from etcuda.kernels.weights.config import Int8CoalescedConfig, quantize_tensor
from etcuda.kernels.weights.tensor import CoalescedTensor
from etcuda.llm.checkpoint import read_config
from etcuda.llm.export import ExportOptions, load_model
from etcuda.llm.model import empty_model
from etcuda.llm.quantization import decode_bytes
from etcuda.llm.stacked_experts import StackedExperts, stacked
from tests.llm.architectures import EXPERTS, RECURRENT, reference, save
from tests.llm.dequantised import dequantised, load_quantised, logits, straight, transformers_logits


@pytest.mark.parametrize("name", EXPERTS)
def test_what_transformers_saves_is_read(name: str, tmp_path: pathlib.Path) -> None:
    whole = save(name, tmp_path)
    options = ExportOptions(target="host", dtype="fp32", max_seq_len=64, chunk=16)
    model, _ = load_model(tmp_path, read_config(tmp_path), options, lambda done, total: None)
    expected, got = whole.state_dict(), model.state_dict()
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        wanted = straight(value, key) if name == "gpt_oss" else value
        torch.testing.assert_close(got[key], wanted, rtol=0, atol=0)


def test_layers_that_guess_tokens_are_left_out(tmp_path: pathlib.Path) -> None:
    save("qwen3_next", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | {"mtp.fc.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_quantised(tmp_path, "none").model
    assert torch.equal(model.get_parameter("lm_head.weight"), tensors["lm_head.weight"])
    save_file(tensors | {"other.fc.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.fc\.weight: expected a name of the model, got another"):
        load_quantised(tmp_path, "none")


@pytest.mark.parametrize("quant", ["int4", "int8"])
@pytest.mark.parametrize("name", [*EXPERTS, *RECURRENT])
def test_quantised_models_say_what_their_dequantised_weights_say(name: str, quant: str, tmp_path: pathlib.Path) -> None:
    whole = save(name, tmp_path)
    model = load_quantised(tmp_path, quant)
    experts = [weight for key, weight in model.model.named_parameters() if re.search(r"experts\.\w+_proj$", key)]
    assert all(isinstance(weight, CoalescedTensor) for weight in experts)
    assert bool(experts) == (name not in ("mamba2", "falcon_h1"))
    wanted = transformers_logits(dequantised(model.model, whole))
    torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(wanted, transformers_logits(whole), rtol=1e-3, atol=1e-3)


def test_a_token_reads_the_experts_that_it_is_given_to() -> None:
    model = empty_model(reference("olmoe").config, torch.float32)
    experts = [weight for name, weight in model.named_parameters() if ".experts." in name]
    embeddings = model.model.embed_tokens.weight.nbytes
    every = sum(weight.nbytes for weight in model.parameters())
    assert len(experts) == 4
    assert decode_bytes(model) == every - embeddings - sum(weight.nbytes for weight in experts) // 2


class Weights:
    """Tensors by name."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def experts(count: int = 2) -> dict[str, torch.Tensor]:
    parts = ("gate_proj", "up_proj", "down_proj")
    return {f"mlp.experts.{number}.{part}.weight": torch.rand(32, 32) for number in range(count) for part in parts}


def test_matrices_are_stacked_by_number() -> None:
    tensors = experts(11)
    made = StackedExperts(Weights(tensors))
    assert made.names() == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert made.shape("mlp.experts.gate_up_proj") == (11, 64, 32)
    assert made.read("mlp.experts.gate_up_proj")[10, 32:].equal(tensors["mlp.experts.10.up_proj.weight"])
    assert made.read("mlp.experts.down_proj")[2].equal(tensors["mlp.experts.2.down_proj.weight"])
    weights = Weights(tensors)
    assert stacked(weights, {"mlp.experts.0.up_proj.weight": torch.empty(0)}) is weights


def test_what_does_not_fit_is_refused() -> None:
    missing = experts()
    del missing["mlp.experts.0.up_proj.weight"]
    message = r"mlp\.experts\.gate_up_proj: expected the matrices of 2 experts, got none, or not all, of expert 0"
    with pytest.raises(CheckpointError, match=message):
        StackedExperts(Weights(missing))
    other = experts() | {"mlp.experts.1.up_proj.weight": torch.rand(3, 32)}
    with pytest.raises(CheckpointError, match=r"expected matrices of one shape, got \(3, 32\), \(32, 32\)"):
        StackedExperts(Weights(other))
    quantised = experts()
    name = "mlp.experts.1.down_proj.weight"
    quantised[name] = quantize_tensor(quantised[name], Int8CoalescedConfig(group_size=32), name)
    with pytest.raises(CheckpointError, match=r"experts\.1\.down_proj\.weight: expected an expert in a floating dtype"):
        StackedExperts(Weights(quantised)).read("mlp.experts.down_proj")
