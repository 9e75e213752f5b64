"""MXFP4 checkpoints of GPT-OSS: their numbers, exactly, and what is refused."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from etcuda.errors import CheckpointError
from etcuda.kernels.weights.int4_tensor import Int4CoalescedTensor
from etcuda.kernels.weights.int8_tensor import Int8CoalescedTensor
from etcuda.llm.checkpoint import read_config
from etcuda.llm.experts import Layout
from etcuda.llm.export import ExportOptions
from etcuda.llm.plan import plan
from etcuda.llm.quantization import QuantOptions, stored_bytes
from etcuda.llm.straight_experts import StraightExperts
from etcuda.target import TARGETS
from tests.llm.architectures import save
from tests.llm.dequantised import crooked, dequantised, load_quantised, logits, transformers_logits
from tests.llm.test_experts import Weights


def packed(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blocks and scales of four experts."""
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, rows, columns // 32, 16), generator=random, dtype=torch.uint8)
    return blocks, torch.randint(120, 126, blocks.shape[:-1], generator=random, dtype=torch.uint8)


def save_mxfp4(folder: pathlib.Path) -> Any:
    """A checkpoint of GPT-OSS whose experts are MXFP4; the model with their numbers, by transformers' formula."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    whole = save("gpt_oss", folder)
    tensors = load_file(folder / "model.safetensors")
    for seed, name in enumerate(sorted(tensors)):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        _, columns, rows = tensors.pop(name).shape
        blocks, scales = packed(rows, columns, seed)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        whole.get_parameter(name).copy_(convert_moe_packed_tensors(blocks, scales))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return whole


def test_numbers_are_those_of_transformers(tmp_path: pathlib.Path) -> None:
    whole = save_mxfp4(tmp_path)
    model = load_quantised(tmp_path, "none")
    experts = {key: value for key, value in model.model.named_parameters() if isinstance(value, Int8CoalescedTensor)}
    assert len(experts) == 4
    for key, value in experts.items():
        assert torch.equal(crooked(value.dequantize(), key), whole.get_parameter(key))
    torch.testing.assert_close(logits(model), transformers_logits(whole), rtol=1e-3, atol=1e-3)
    # int8 is what they are; in int4 they are quantised anew.
    again = load_quantised(tmp_path, "int8").model
    for key, value in experts.items():
        assert torch.equal(again.get_parameter(key).dequantize(), value.dequantize())
    other = load_quantised(tmp_path, "int4")
    assert all(isinstance(other.model.get_parameter(key), Int4CoalescedTensor) for key in experts)
    wanted = transformers_logits(dequantised(other.model, whole))
    torch.testing.assert_close(logits(other), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quant", ["none", "int4"])
def test_a_plan_knows_their_bytes(quant: str, tmp_path: pathlib.Path) -> None:
    save_mxfp4(tmp_path)
    model = load_quantised(tmp_path, quant, "bf16").model
    options = ExportOptions(dtype="bf16", max_seq_len=64, chunk=16, quant=QuantOptions(quant))
    assert plan(tmp_path, TARGETS["sm_90"], options).weight_bytes == sum(map(stored_bytes, model.parameters()))


def test_what_is_refused(tmp_path: pathlib.Path) -> None:
    blocks, scales = packed(64, 32, 0)
    name = "mlp.experts.gate_up_proj"

    def read(**tensors: Tensor) -> Tensor:
        weights = Weights({f"{name}_{part}": tensor for part, tensor in tensors.items()})
        return StraightExperts(weights, Layout(True, True), torch.float32, "int8").read(name)

    with pytest.raises(CheckpointError, match=rf"{name}_blocks: expected {name}_scales too, got none"):
        read(blocks=blocks)
    with pytest.raises(CheckpointError, match=r"expected blocks \[experts, rows, K / 32, 16\].*got \[4, 64, 1, 8\]"):
        read(blocks=blocks[..., :8], scales=scales)
    with pytest.raises(CheckpointError, match=rf"{name}: expected MXFP4 with scales from"):
        read(blocks=blocks, scales=scales.fill_(200))
    save("qwen3_moe", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path).model_type == "qwen3_moe"
    with pytest.raises(
        CheckpointError, match="quant_method 'mxfp4': expected the experts of GPT-OSS and its activation, got a"
    ):
        load_quantised(tmp_path, "none")
