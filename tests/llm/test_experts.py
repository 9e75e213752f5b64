"""Experts that are stored one by one are read as the model has them."""

from __future__ import annotations

import pathlib

import pytest
import torch

from etcuda.errors import CheckpointError
from etcuda.kernels.weights.config import Int8CoalescedConfig, quantize_tensor
from etcuda.llm.checkpoint import read_config
from etcuda.llm.export import ExportOptions, load_model
from etcuda.llm.model import empty_model
from etcuda.llm.quantization import decode_bytes
from etcuda.llm.stacked_experts import StackedExperts, stacked
from tests.llm.architectures import EXPERTS, reference, save


@pytest.mark.parametrize("name", EXPERTS)
def test_what_transformers_saves_is_read(name: str, tmp_path: pathlib.Path) -> None:
    whole = save(name, tmp_path)
    options = ExportOptions(target="host", dtype="fp32", max_seq_len=64, chunk=16)
    model, _ = load_model(tmp_path, read_config(tmp_path), options, lambda done, total: None)
    expected, got = whole.state_dict(), model.state_dict()
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=0)


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
