"""Checkpoints that are quantised already keep their integers, scales and zero points."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from etcuda import Int4CoalescedTensor, Int8CoalescedTensor
from etcuda.errors import CheckpointError
from etcuda.kernels.weights.tensor import CoalescedTensor
from etcuda.llm.checkpoint import SafetensorsFolder, read_config
from etcuda.llm.export import ExportOptions, load_model
from etcuda.llm.plan import find_gpu, plan
from etcuda.llm.quantization import QuantOptions, stored_bytes
from etcuda.llm.quantized_checkpoint import QuantizedFolder, Scheme, read_scheme
from tests.llm.conftest import checkpoint

__all__ = ["checkpoint"]  # Fixtures.


def pack(integers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Rows of integers [n, m] in words [n, m * bits / 32], one shift at a time."""
    count = 32 // bits
    out = torch.zeros(integers.shape[0], integers.shape[1] // count, dtype=torch.int64)
    for word in range(out.shape[1]):
        for place in range(count):
            column = word * count + (order[place] if order else place)
            out[:, word] |= integers[:, column].to(torch.int64) << (bits * place)
    return out.to(torch.int32)


class Made:
    """A quantised linear layer [n, k] of known integers."""

    def __init__(self, n: int, k: int, group: int, bits: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        most = (1 << bits) - 1
        self.bits, self.k, self.group = bits, k, group
        self.q = torch.randint(0, most + 1, (n, k), generator=generator)
        self.zero = torch.randint(0, most + 1, (n, k // group), generator=generator)
        self.zero[0, 0], self.zero[1, 0] = 0, most
        self.scale = (torch.rand(n, k // group, generator=generator) * 0.1 + 1e-3).half()

    @property
    def values(self) -> Tensor:
        shifted = self.q - self.zero.repeat_interleave(self.group, 1)
        return shifted.float() * self.scale.float().repeat_interleave(self.group, 1)

    def gptq(self, name: str, less: int) -> dict[str, Tensor]:
        zero = (self.zero - less) % (1 << self.bits)
        return {
            f"{name}.qweight": pack(self.q, self.bits).t().contiguous(),
            f"{name}.qzeros": pack(zero.t().contiguous(), self.bits),
            f"{name}.scales": self.scale.t().contiguous(),
            f"{name}.g_idx": torch.arange(self.k, dtype=torch.int32) // self.group,
        }

    def awq(self, name: str) -> dict[str, Tensor]:
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        return {
            f"{name}.qweight": pack(self.q.t().contiguous(), 4, order),
            f"{name}.qzeros": pack(self.zero.t().contiguous(), 4, order),
            f"{name}.scales": self.scale.t().contiguous(),
        }


def folder(path: pathlib.Path, tensors: dict[str, Tensor], quantization: dict[str, Any]) -> QuantizedFolder:
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    scheme = read_scheme(path)
    assert scheme is not None
    return QuantizedFolder(SafetensorsFolder(path), scheme, torch.bfloat16, "int8")


@pytest.mark.parametrize(("n", "k", "group"), [(16, 256, 128), (40, 64, 32), (8, 640, 640), (4096, 128, 128)])
def test_awq(tmp_path: pathlib.Path, n: int, k: int, group: int) -> None:
    made = Made(n, k, group)
    tensors = {**made.awq("a.b"), "a.norm": torch.ones(3)}
    found = folder(tmp_path, tensors, {"quant_method": "awq", "bits": 4, "group_size": group, "version": "GEMM"})
    assert sorted(found.names()) == ["a.b.weight", "a.norm"]
    assert found.shape("a.b.weight") == (n, k)
    weight = found.read("a.b.weight")
    assert isinstance(weight, Int4CoalescedTensor)
    assert (weight.dtype, weight.activation_dtype, weight.scale.dtype) == (torch.bfloat16, "int8", torch.float16)
    assert torch.equal(weight.dequantize(torch.float32), made.values)
    assert torch.equal(found.read("a.norm"), torch.ones(3))


@pytest.mark.parametrize(("layout", "less"), [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize(("n", "k", "group", "bits"), [(16, 256, 128, 4), (4096, 96, 32, 4), (24, 128, 64, 8)])
def test_gptq(tmp_path: pathlib.Path, layout: str, less: int, n: int, k: int, group: int, bits: int) -> None:
    made = Made(n, k, group, bits)
    method = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": layout, "sym": False}
    found = folder(tmp_path, made.gptq("fc", less), method)
    assert found.names() == ["fc.weight"]
    assert found.shape("fc.weight") == (n, k)
    weight = found.read("fc.weight")
    assert isinstance(weight, Int4CoalescedTensor if bits == 4 else Int8CoalescedTensor)
    assert torch.equal(weight.dequantize(torch.float32), made.values)


def test_symmetric_gptq_of_eight_bits_stores_no_offset(tmp_path: pathlib.Path) -> None:
    made = Made(16, 64, 32, 8)
    made.zero.fill_(128)
    weight = folder(tmp_path, made.gptq("fc", 1), {"quant_method": "gptq", "bits": 8}).read("fc.weight")
    assert isinstance(weight, Int8CoalescedTensor)
    assert weight.zero is None
    assert torch.equal(weight.dequantize(torch.float32), made.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["fc.g_idx"].copy_(t["fc.g_idx"].flip(0)), r"fc\.weight: g_idx: expected groups of 32 .* desc_act"),
        (lambda t: t.pop("fc.scales"), r"fc: expected qweight, qzeros and scales, got none of the name fc\.scales"),
        (lambda t: t.update({"fc.qzeros": t["fc.qzeros"][:, :1]}), r"expected, .* qzeros \[4, 2\], got \[4, 1\]"),
    ],
)
def test_parts_that_do_not_fit(
    tmp_path: pathlib.Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    tensors = Made(16, 128, 32).gptq("fc", 1)
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=message):
        folder(tmp_path, tensors, {"quant_method": "gptq", "bits": 4}).read("fc.weight")


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "fp8"}, r"quant_method: expected awq, gptq, mxfp4, torchao, or none, got 'fp8'\. Export the"),
        ({"quant_method": "gptq", "bits": 3}, r"expected GPTQ with 4 or 8 bits .* got 3 bits and 'gptq'"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, r"got 4 bits and 'marlin'"),
        ({"quant_method": "gptq", "dynamic": {"a": {"bits": 8}, "-:b": {}}}, r"others for \{'a': 8\}"),
        (
            {"quant_method": "gptq", "dynamic": {"a": 8}},
            r"dynamic: expected an object with an object for each name, got",
        ),
        ({"quant_method": "gptq", "group_size": "x"}, r"group_size: expected 1 or more, or -1 for whole rows, got 'x'"),
        ({"quant_method": "awq", "group_size": 0}, r"group_size: expected 1 or more, or -1 for whole rows, got 0"),
        ({"quant_method": "gptq", "bits": "4"}, r"got '4' bits and 'gptq'"),
        ({"quant_method": "awq", "version": "gemv"}, r"AWQ with 4 bits in the layout 'gemm', got 4 bits and 'gemv'"),
    ],
)
def test_what_is_not_served(tmp_path: pathlib.Path, quantization: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    with pytest.raises(CheckpointError, match=message):
        read_scheme(tmp_path)


def test_the_older_name_of_compressed_tensors(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"compression_config": {"quant_method": "compressed-tensors"}}))
    with pytest.raises(CheckpointError, match=r"quant_method: expected awq, .* got 'compressed-tensors'"):
        read_scheme(tmp_path)


def test_formats_that_say_their_kind_and_checkpoints_of_none(tmp_path: pathlib.Path) -> None:
    config = tmp_path / "config.json"
    for quantization, wanted in (
        ({"quant_method": "gptq", "bits": 8, "format": "gptq_v2"}, Scheme("gptq", 8, 0)),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:lm_head": {}}}, Scheme("gptq", 4, 1)),
        ({"quant_method": "awq", "bits": 4, "format": "gemm"}, Scheme("awq")),
        (None, None),
    ):
        config.write_text(json.dumps({"text_config": {"quantization_config": quantization}}))
        assert read_scheme(tmp_path) == wanted


def test_torchao(tmp_path: pathlib.Path) -> None:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(64, 16, bias=False)).bfloat16()
    chosen = {"0": Int8WeightOnlyConfig(version=2), "1": IntxWeightOnlyConfig(torch.int4, PerGroup(32), version=2)}
    for name, config in chosen.items():
        quantize_(model, config, lambda module, fqn, name=name: fqn == name)  # type: ignore[misc]
    state = {name: value.data for name, value in model.state_dict().items()}
    tensors, metadata = flatten_tensor_state_dict(state)
    save_file(tensors, tmp_path / "model.safetensors", metadata={**metadata, "format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "torchao"}}))
    scheme = read_scheme(tmp_path)
    assert scheme == Scheme("torchao")
    found = QuantizedFolder(SafetensorsFolder(tmp_path), scheme, torch.bfloat16, "exact")
    assert sorted(found.names()) == ["0.bias", "0.weight", "1.weight"]
    assert found.shape("0.weight") == (32, 64)
    assert torch.equal(found.read("0.bias"), state["0.bias"])
    for name, kind in (("0.weight", Int8CoalescedTensor), ("1.weight", Int4CoalescedTensor)):
        weight = found.read(name)
        assert isinstance(weight, kind)
        assert torch.equal(weight.dequantize(), state[name].dequantize())


def test_a_model_of_a_gptq_checkpoint(checkpoint: Callable[[str], pathlib.Path], tmp_path: pathlib.Path) -> None:
    source = tmp_path / "gptq"
    shutil.copytree(checkpoint("llama"), source)
    tensors = load_file(source / "model.safetensors")
    layers = {}
    for name in [each for each in tensors if each.endswith("_proj.weight")]:
        n, k = tensors.pop(name).shape
        layers[name] = Made(n, k, 32, seed=len(layers))
        tensors |= layers[name].gptq(name.removesuffix(".weight"), 1)
    save_file(tensors, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    (source / "config.json").write_text(json.dumps(config))
    # What the checkpoint left may be quantised; what it did not stays.
    options = ExportOptions(target="host", dtype="fp32", max_seq_len=64, chunk=16, quant=QuantOptions("int8"))
    model, _ = load_model(source, read_config(source), options, lambda done, total: None)
    assert isinstance(model.lm_head.weight, Int8CoalescedTensor)
    assert len(layers) == 14
    for name, made in layers.items():
        weight = model.get_parameter(name)
        assert isinstance(weight, CoalescedTensor)
        assert torch.equal(weight.dequantize(), made.values)
    planned = plan(source, find_gpu("h200"), options)
    assert planned.weight_bytes == sum(stored_bytes(weight) for weight in model.parameters())
