"""The tensor subclasses of int4 and int8 weights: what PyTorch does with them, and how they travel."""

from __future__ import annotations

import copy
import io
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch.nn import functional

import etcuda
from etcuda.errors import EtcudaError, KernelArgumentError, SaveError, WeightFormatError
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format
from etcuda.kernels.weights.int4_tensor import Int4CoalescedTensor
from etcuda.kernels.weights.tensor import CoalescedTensor
from tests.kernels.weights.weight_cases import FORMATS, random_components, random_weight, values_one_by_one

ROOT = pathlib.Path(__file__).resolve().parents[3]
SOME = [Int4Format(32, "fp16", "zero_point"), Int4Format(32, "codes", "minimum"), Int8Format(16, "codes")]


def exact(weight: CoalescedTensor) -> Tensor:
    return values_one_by_one(weight.format, weight.components, *weight.shape)


def same(left: Any, right: Any) -> bool:
    components, others = left.components, right.components
    if any(getattr(left, name) != getattr(right, name) for name in ("group_size", "activation_dtype", "dtype")):
        return False
    return components.keys() == others.keys() and all(torch.equal(components[n], others[n]) for n in components)


class Model(nn.Module):
    """An embedding, a linear layer with a bias and one without, that shares the embedding's weight."""

    def __init__(self, weight_format: GroupFormat, activation_dtype: str = "exact") -> None:
        super().__init__()
        self.embedding = nn.Embedding(33, 512)
        self.hidden = nn.Linear(512, 512)
        self.head = nn.Linear(512, 33, bias=False)
        shared = nn.Parameter(
            random_weight(weight_format, 33, 512, activation_dtype=activation_dtype), requires_grad=False
        )
        self.embedding.weight = self.head.weight = shared
        self.hidden.weight = nn.Parameter(
            random_weight(weight_format, 512, 512, activation_dtype=activation_dtype), requires_grad=False
        )
        self.hidden.bias.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(tokens)))


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_linear_and_embedding_use_the_values(weight_format: GroupFormat) -> None:
    weight = random_weight(weight_format, 7, 512)
    values = exact(weight)
    x, bias = torch.randn(2, 3, 512), torch.randn(7)
    expected = x.double() @ values.T
    tolerance = float(x.double().abs().matmul(values.abs().T).max()) * 2e-6
    torch.testing.assert_close(functional.linear(x, weight).double(), expected, rtol=0, atol=tolerance)
    expected = expected + bias
    calls = (
        functional.linear(x, weight, bias),
        functional.linear(x, weight, bias=bias),
        functional.linear(input=x, weight=weight, bias=bias),
    )
    for result in calls:
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
    indices = torch.tensor([[0, 6], [3, 3]])
    rows = functional.embedding(indices, weight)
    torch.testing.assert_close(rows.double(), values[indices], rtol=1e-6, atol=1e-4)
    assert rows.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_format", SOME, ids=str)
def test_results_have_the_dtype_of_input_and_weight(weight_format: GroupFormat, dtype: torch.dtype) -> None:
    weight = random_weight(weight_format, 8, 512, dtype=dtype)
    assert functional.embedding(torch.tensor([1]), weight).dtype == dtype
    assert weight.dequantize().dtype == dtype
    assert torch.equal(weight.dequantize(), weight.dequantize(torch.float32).to(dtype))
    x = torch.randn(3, 512, dtype=dtype) / 64
    result = functional.linear(x, weight, torch.zeros(8, dtype=dtype))
    assert result.dtype == dtype
    expected = x.double() @ exact(weight).T
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=float(expected.abs().max()) * 1e-2)


def test_rounded_activations_are_near_exact_ones() -> None:
    weight = random_weight(SOME[0], 64, 512, activation_dtype="int8")
    x = torch.randn(5, 512)
    expected = x.double() @ exact(weight).T
    error = (functional.linear(x, weight).double() - expected).norm() / expected.norm()
    assert 1e-5 < error < 2e-2
    assert same(weight, weight.with_activation_dtype("exact").with_activation_dtype("int8"))
    exact_result = functional.linear(x, weight.with_activation_dtype("exact"))
    assert (exact_result.double() - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("weight_format", SOME, ids=str)
def test_rows_are_sliced_as_views(weight_format: GroupFormat) -> None:
    weight = random_weight(weight_format, 9, 512)
    part = weight[2:7:2]
    assert type(part) is type(weight)
    assert part.shape == (3, 512)
    assert torch.equal(part.dequantize(), weight.dequantize()[2:7:2])
    assert part.qdata.untyped_storage().data_ptr() == weight.qdata.untyped_storage().data_ptr()
    assert torch.equal(weight.narrow(0, 1, 4).dequantize(), weight.dequantize()[1:5])
    assert torch.equal(weight[-3:].dequantize(), weight.dequantize()[-3:])
    assert torch.equal(weight[:, :].dequantize(), weight.dequantize())
    x = torch.randn(2, 512)
    expected = functional.linear(x, weight)[:, 2:7:2]
    torch.testing.assert_close(functional.linear(x, part), expected, rtol=1e-5, atol=1e-2)


def test_what_is_refused() -> None:
    weight = random_weight(SOME[0], 8, 512)
    with pytest.raises(WeightFormatError, match="expected a dimension before the last, such as 0, got dimension 1"):
        weight[:, :256]
    with pytest.raises(WeightFormatError, match=r"\[0, 512\]"):
        weight[3:3]
    with pytest.raises(KernelArgumentError, match=r"aten\.t.*Use weight\.dequantize"):
        weight.t()
    with pytest.raises(KernelArgumentError, match="max_norm"):
        functional.embedding(torch.tensor([1]), weight, max_norm=1.0)
    with pytest.raises(KernelArgumentError, match="plain input and a quantised weight"):
        functional.linear(weight, torch.zeros(4, 512))
    for dtype in (torch.float64, torch.int8):
        with pytest.raises(WeightFormatError, match=f"bfloat16, float16 or float32, got {dtype}"):
            weight.to(dtype)
    for bad in (torch.randn(2, 511), torch.randn(2, 512).double(), torch.ones(2, 512, dtype=torch.int64)):
        with pytest.raises(EtcudaError):
            functional.linear(bad, weight)


def test_parts_are_checked() -> None:
    components = random_components(SOME[0], 8, 512)
    with pytest.raises(WeightFormatError, match=r"layer\.weight: zero: expected shape"):
        Int4CoalescedTensor.from_components({**components, "zero": components["zero"][:4]}, 32, name="layer.weight")
    with pytest.raises(WeightFormatError, match=r"layer\.weight: expected qdata and scale"):
        Int4CoalescedTensor.from_components({"qdata": components["qdata"]}, 32, name="layer.weight")
    components["scale"][5, 3] = float("nan")
    with pytest.raises(WeightFormatError, match=r"layer.weight: scale: expected finite values, got nan at \[5, 3\]"):
        Int4CoalescedTensor.from_components(components, 32, name="layer.weight")
    with pytest.raises(WeightFormatError, match="activation_dtype: expected 'int8' or 'exact', got 'int4'"):
        Int4CoalescedTensor.from_components(random_components(SOME[0], 8, 512), 32, activation_dtype="int4")


@pytest.mark.parametrize("weight_format", SOME, ids=str)
def test_moves_and_copies(weight_format: GroupFormat) -> None:
    weight = random_weight(weight_format, 8, 512)
    half = weight.to(torch.float16)
    assert half.dtype == torch.float16
    assert {name: part.dtype for name, part in half.components.items()} == {
        name: part.dtype for name, part in weight.components.items()
    }
    assert half.qdata.data_ptr() != weight.qdata.data_ptr()
    assert same(half.to(torch.float32), weight)
    assert weight.to("meta", torch.bfloat16).qdata.device.type == "meta"
    with torch.inference_mode():
        assert weight.half().dtype == torch.float16
        assert weight.to("meta").device.type == "meta"
    for made in (weight.clone(), weight.detach(), weight.contiguous(), copy.deepcopy(weight)):
        assert same(made, weight)
    other = random_weight(weight_format, 8, 512)
    other.qdata.zero_()
    other.copy_(weight)
    assert same(other, weight)


def test_modules_move() -> None:
    model = Model(SOME[0])
    moved = copy.deepcopy(model).to(torch.bfloat16)
    assert moved.head.weight.dtype == torch.bfloat16
    assert moved.hidden.bias.dtype == torch.bfloat16
    assert moved(torch.tensor([1])).dtype == torch.bfloat16
    assert moved.head.weight.qdata.dtype == torch.uint8
    assert model.to("meta").hidden.weight.qdata.device.type == "meta"


@pytest.mark.parametrize("weight_format", SOME, ids=str)
def test_torch_save(weight_format: GroupFormat) -> None:
    model, other = Model(weight_format), Model(weight_format)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.hidden.weight.qdata.zero_()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert same(other.hidden.weight, model.hidden.weight)
    tokens = torch.tensor([[0, 32, 5]])
    assert torch.equal(model(tokens), other(tokens))


@pytest.mark.parametrize("weight_format", SOME, ids=str)
def test_safetensors(weight_format: GroupFormat, tmp_path: pathlib.Path) -> None:
    model = Model(weight_format, "int8")
    file = tmp_path / "weights.safetensors"
    etcuda.save_weights(model, file)
    assert list(tmp_path.iterdir()) == [file]
    loaded = etcuda.load_weights(file)
    assert loaded["head.weight"] is loaded["embedding.weight"]
    stored = sum(weight.stored_bytes for weight in (model.head.weight, model.hidden.weight)) + 512 * 4
    assert stored < file.stat().st_size < stored + 4096
    other = Model(weight_format)
    other.load_state_dict(loaded, assign=True)
    assert same(other.hidden.weight, model.hidden.weight)
    assert same(other.head.weight, model.head.weight)
    assert torch.equal(other.hidden.bias, model.hidden.bias)


def test_safetensors_of_views_and_plain_tensors(tmp_path: pathlib.Path) -> None:
    weight, plain = random_weight(SOME[1], 9, 512), torch.randn(4, 6)
    named = {"rows": weight[2:5], "all": weight, "left": plain[:, :3], "plain": plain, "empty": torch.zeros(0)}
    etcuda.save_weights(named, tmp_path / "w")
    loaded = etcuda.load_weights(tmp_path / "w")
    assert loaded.keys() == named.keys()
    assert torch.equal(loaded["rows"].dequantize(), weight[2:5].dequantize())
    for name in ("left", "plain", "empty"):
        assert torch.equal(loaded[name], named[name])


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    weight = random_weight(SOME[0], 8, 512)
    file = tmp_path / "w"
    etcuda.save_weights({"w": weight}, file)
    before = file.read_bytes()
    weight.scale[0, 0] = float("inf")
    with pytest.raises(WeightFormatError, match="w: scale"):
        etcuda.save_weights({"w": weight}, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(SaveError, match="missing"):
        etcuda.save_weights({"w": torch.ones(2)}, tmp_path / "missing" / "w")
    with pytest.raises(WeightFormatError, match=r"w: expected the name w\.qdata to be free"):
        etcuda.save_weights({"w": random_weight(SOME[0], 8, 512), "w.qdata": torch.ones(1)}, file)


def test_damaged_files(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "w"
    etcuda.save_weights({"layer.weight": random_weight(SOME[0], 8, 512)}, file)
    whole = file.read_bytes()
    for damaged in (whole[:-5], whole[:20], b"", b"\x00" * 64):
        file.write_bytes(damaged)
        with pytest.raises(WeightFormatError, match="expected a safetensors file"):
            etcuda.load_weights(file)
    for old, new, words in (
        (b"int4", b"int3", "layer.weight: expected its type"),
        (b'ersion\\":1', b'ersion\\":9', "expected version 1, got 9"),
        (b'ersion\\": 1', b'ersion\\": 9', "expected version 1, got 9"),
        (b'p_size\\": 32', b'p_size\\": 64', "layer.weight: "),
        (b"bfloat16", b"bfloat61", "layer.weight: expected its type"),
    ):
        if old in whole:
            file.write_bytes(whole.replace(old, new))
            with pytest.raises(WeightFormatError, match=words):
                etcuda.load_weights(file)
    with pytest.raises(WeightFormatError, match="missing"):
        etcuda.load_weights(tmp_path / "missing")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("weight_format", SOME, ids=str)
def test_export_keeps_one_node_per_call(weight_format: GroupFormat, dynamic: bool) -> None:
    model = Model(weight_format, "int8").eval()
    family = "int4" if weight_format.bits == 4 else "int8"
    shapes = {"tokens": {0: torch.export.Dim("length", max=64)}} if dynamic else None
    program = torch.export.export(model, (torch.arange(5),), dynamic_shapes=shapes)
    lowered = to_edge_transform_and_lower(program, partitioner=[]).exported_program()
    calls = [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]
    assert [call.rsplit(".", 1)[0].rsplit(".", 1)[-1] for call in calls] == [
        f"{family}_embedding",
        f"{family}_linear",
        f"{family}_linear",
    ]
    dtypes = {tensor.dtype for tensor in lowered.state_dict.values()}
    assert (torch.uint8 if weight_format.bits == 4 else torch.int8) in dtypes
    for tokens in [torch.arange(5), *([torch.arange(1), torch.arange(33)] if dynamic else [])]:
        torch.testing.assert_close(lowered.module()(tokens), model(tokens), rtol=0, atol=0)


def test_import_is_lazy() -> None:
    code = "import sys, etcuda, etcuda.kernels; assert not {'torchao', 'gguf', 'safetensors'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert etcuda.Int4CoalescedTensor is Int4CoalescedTensor
    for name in etcuda.__all__:
        assert getattr(etcuda, name) is not None
