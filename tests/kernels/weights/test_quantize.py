"""Quantising weights and models to int4 and int8."""

from __future__ import annotations

import copy
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_affine_hqq as hqq

import etcuda
from etcuda import Int4CoalescedConfig, Int4CoalescedTensor, Int8CoalescedConfig, Int8CoalescedTensor
from etcuda.errors import EtcudaError, OptionError, WeightFormatError
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format
from etcuda.kernels.weights.quantize import quantize_weight
from tests.kernels.weights.weight_cases import INT4_FORMATS

ROOT = pathlib.Path(__file__).resolve().parents[3]
QUANTIZABLE = [*INT4_FORMATS, Int8Format(16), Int8Format(512), Int8Format(32, "codes"), Int8Format(64, "fp32")]


def error(weight_format: GroupFormat, weight: Tensor, components: dict[str, Tensor]) -> float:
    """Squared error over the weight's squares."""
    return float(
        (weight_format.dequantize(**components).double() - weight.double()).square().sum()
        / weight.double().square().sum()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_format", QUANTIZABLE, ids=str)
def test_values_are_within_half_a_step(weight_format: GroupFormat, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 512).to(dtype)
    weight[1] = 0
    weight[2] = weight[2].abs() + 1
    weight[3] = -weight[3].abs() - 1
    components = quantize_weight(weight.t().contiguous().t(), weight_format)
    weight_format.check_components(components)
    groups = (5, 512 // weight_format.group_size, weight_format.group_size)
    values = weight_format.dequantize(**components).reshape(groups)
    steps = weight_format.effective_scale(components["scale"], components.get("scale_step")).abs().unsqueeze(-1)
    off = (values - weight.float().reshape(groups)).abs()
    # Stored scales are rounded, and offsets of "zero_point" and codes too, which may move the ends of the range.
    slack = {"fp16": 0.02, "fp32": 0.001, "codes": 0.15}[weight_format.scale_storage] + (
        weight_format.offset == "zero_point"
    ) * 0.5
    if weight_format.offset == "symmetric" and weight_format.bits == 4:
        slack += 0.5  # 8 steps to one side and 7 to the other.
    assert bool((off <= steps * (0.5 + slack) + 1e-6).all()), float((off / steps.clamp(min=1e-9)).max())
    assert torch.equal(values[1], torch.zeros_like(values[1]))


@pytest.mark.parametrize("weight_format", QUANTIZABLE, ids=str)
def test_the_stored_integers_are_the_nearest(weight_format: GroupFormat) -> None:
    torch.manual_seed(1)
    weight = torch.randn(3, 512)
    components = quantize_weight(weight, weight_format, "least_squares")
    best = error(weight_format, weight, components)
    q = weight_format.unpack(components["qdata"]).to(torch.int16)
    least, most = {"int4": (0, 15), "int8": (-127, 127)}[weight_format.name]
    for step in (-1, 1):
        moved = {**components, "qdata": weight_format.pack((q + step).clamp(least, most))}
        nearer = (weight_format.dequantize(**moved) - weight).abs() < (
            weight_format.dequantize(**components) - weight
        ).abs() - 1e-6
        assert not bool(nearer.any())
    assert best < (0.05 if weight_format.bits == 4 else 1e-4)


@pytest.mark.parametrize("weight_format", QUANTIZABLE, ids=str)
def test_quantising_twice_changes_nothing(weight_format: GroupFormat) -> None:
    torch.manual_seed(2)
    values = weight_format.dequantize(**quantize_weight(torch.randn(4, 512), weight_format))
    again = error(weight_format, values, quantize_weight(values, weight_format, "least_squares"))
    assert again < (2e-3 if weight_format.bits == 4 else 2e-5)


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("outliers", [False, True])
def test_the_search_is_at_least_as_good_as_hqq(group_size: int, outliers: bool) -> None:
    torch.manual_seed(3)
    weight = torch.randn(64, 1024) * 0.02
    if outliers:
        weight = weight * torch.randn(64, 1024).abs().exp()
    q, scale, zero, _ = hqq(weight, 4, group_size, compute_dtype=torch.float32, device="cpu")
    values = (q.reshape(*scale.shape, -1).float() - 8) * scale.unsqueeze(-1) + zero.unsqueeze(-1)
    theirs = float((values.reshape(weight.shape) - weight).square().sum() / weight.square().sum())
    for weight_format in (Int4Format(group_size, "fp16", "minimum"), Int4Format(group_size, "codes", "minimum")):
        assert error(weight_format, weight, quantize_weight(weight, weight_format, "least_squares")) < theirs
    for weight_format in QUANTIZABLE:
        if weight_format == Int8Format(512):
            continue
        searched = error(weight_format, weight, quantize_weight(weight, weight_format, "least_squares"))
        assert searched <= error(weight_format, weight, quantize_weight(weight, weight_format)) * 1.001


def test_rows_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 512)
    weight_format = Int4Format(32, "codes", "minimum")
    whole = quantize_weight(weight, weight_format)
    monkeypatch.setitem(__import__("etcuda.kernels.weights.quantize", fromlist=["CHUNK"]).CHUNK, "cpu", 5 * 512)
    pieces = quantize_weight(weight, weight_format)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


class Block(nn.Module):
    """Layers of the kinds that a model has."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 64)
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64, bias=False)])
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(self.norm(x))
        return self.head(self.norm(x))


def test_quantize_of_torchao_with_a_filter() -> None:
    model = Block()
    quantize_(model, Int4CoalescedConfig(group_size=32), lambda module, name: name == "layers.0")
    assert isinstance(model.layers[0].weight, Int4CoalescedTensor)
    assert not isinstance(model.layers[1].weight, Int4CoalescedTensor)
    quantize_(model, Int8CoalescedConfig(group_size=None), lambda module, name: name == "embedding")
    assert model.embedding.weight.group_size == 64
    assert model.embedding.weight.activation_dtype == "int8"


def test_quantize_of_torchao_by_name() -> None:
    model = Block()
    config = FqnToConfig(
        {
            "layers.0": Int4CoalescedConfig(64, activation_dtype="exact"),
            r"re:layers\.\d+\.weight": Int8CoalescedConfig(16),
        }
    )
    quantize_(model, config, filter_fn=None)
    assert model.layers[0].weight.format == Int4Format(64, "fp16", "zero_point")
    assert model.layers[0].weight.activation_dtype == "exact"
    assert model.layers[1].weight.format == Int8Format(16)


def test_quantize_weights_keeps_weights_shared_and_near() -> None:
    torch.manual_seed(0)
    model = Block().eval()
    before = copy.deepcopy(model)
    config = Int8CoalescedConfig(32, activation_dtype="exact")
    names = etcuda.quantize_weights(model, config, lambda module, name: isinstance(module, nn.Linear | nn.Embedding))
    assert names == ["embedding.weight", "layers.0.weight", "layers.1.weight", "head.weight"]
    assert model.embedding.weight is model.head.weight
    assert isinstance(model.head.weight, Int8CoalescedTensor)
    tokens = torch.arange(40)
    torch.testing.assert_close(model(tokens), before(tokens), rtol=0.03, atol=0.3)
    assert etcuda.quantize_weights(Block(), Int4CoalescedConfig()) == [
        "layers.0.weight",
        "layers.1.weight",
        "head.weight",
    ]


def bad_models() -> dict[str, tuple[nn.Module, str]]:
    nan, great = nn.Linear(64, 4), nn.Linear(64, 4)
    nan.weight.data[2, 3] = float("nan")
    great.weight.data[2, 3] = 3e38
    return {
        "K": (nn.Linear(65, 4), "multiple of 32.*K = 65"),
        "K is 0": (nn.Linear(0, 4), r"at least 1, got \[4, 0\]"),
        "N is 0": (nn.Linear(64, 0), r"at least 1, got \[0, 64\]"),
        "dtype": (nn.Linear(64, 4).double(), "float32, got a (Parameter|Tensor) of torch.float64"),
        "module": (nn.LayerNorm(64), "Linear or an Embedding, got one of a LayerNorm"),
        "meta": (nn.Linear(64, 4, device="meta"), "weight with values, got one on the meta device"),
        "nan": (nan, "finite weights"),
        "great": (great, r"scale: expected finite values, got inf at \[2, 0\]"),
    }


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("case", ["K", "K is 0", "N is 0", "dtype", "module", "meta", "nan", "great"])
def test_weights_that_cannot_be_quantised(case: str) -> None:
    bad, words = bad_models()[case]
    model = nn.Sequential(nn.Linear(64, 64), nn.Sequential(bad))

    def leaves(module: nn.Module, name: str) -> bool:
        return not isinstance(module, nn.Sequential)

    with pytest.raises(WeightFormatError, match=rf"(?s)1\.0\.weight: .*{words}"):
        etcuda.quantize_weights(model, Int4CoalescedConfig(), leaves)
    if case != "great":
        assert not isinstance(model[0].weight, Int4CoalescedTensor)
    with pytest.raises(WeightFormatError, match=words):
        quantize_(model, Int4CoalescedConfig(), lambda module, name: name == "1.0")


def test_a_quantised_weight_is_not_quantised_again() -> None:
    model = nn.Linear(64, 64)
    etcuda.quantize_weights(model, Int4CoalescedConfig())
    with pytest.raises(WeightFormatError, match=r"weight: .*got a Int4CoalescedTensor.*quantised already"):
        etcuda.quantize_weights(model, Int4CoalescedConfig())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Int4CoalescedConfig, {"group_size": 48}, "group_size: expected one of 32, 64, 128, 256, got 48"),
        (Int4CoalescedConfig, {"scale_storage": "codes"}, "got 'zero_point'"),
        (Int4CoalescedConfig, {"activation_dtype": "int4"}, "activation_dtype: expected 'int8' or 'exact', got 'int4'"),
        (Int4CoalescedConfig, {"scale_search": "hqq"}, "scale_search: expected 'minmax' or 'least_squares'"),
        (Int8CoalescedConfig, {"group_size": 0}, "group_size"),
        (Int8CoalescedConfig, {"scale_storage": "fp8"}, "scale_storage"),
    ],
)
def test_options_that_are_none(kind: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((OptionError, WeightFormatError), match=words) as raised:
        kind(**options)
    assert isinstance(raised.value, EtcudaError)


_MEASURE = """
import sys, torch
torch.set_num_threads(1)
from etcuda.kernels.weights.config import Int4CoalescedConfig, quantize_tensor
from etcuda.kernels.weights.convert import from_torchao
from torchao.quantization import IntxUnpackedToInt8Tensor

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def weight(n, k=2048):
    if sys.argv[1] == "quantise":
        return torch.randn(k, dtype=torch.float32).to(torch.bfloat16).repeat(n, 1)
    q = torch.arange(k).remainder(16).sub(8).to(torch.int8).repeat(n, 1)
    scale = torch.ones(n, k // 32, dtype=torch.bfloat16)
    zero = torch.ones(n, k // 32, dtype=torch.int8)
    return IntxUnpackedToInt8Tensor(q, scale, zero, torch.int4, (1, 32), torch.bfloat16, None)

def make(weight):
    return quantize_tensor(weight, Int4CoalescedConfig()) if sys.argv[1] == "quantise" else from_torchao(weight)

# What is imported and compiled at first use is no part of what a weight takes.
make(weight(64))
given = weight(65536)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = memory("VmRSS")
made = make(given)
print((memory("VmHWM") - before) / made.stored_bytes)
"""


@pytest.mark.parametrize("what", ["quantise", "convert"])
def test_memory_beside_the_model_is_bounded(what: str) -> None:
    # 76 MB packed: for a vocabulary of 262144 x 5376, 11 times as large, the ratio is nearer to 1.
    command = [sys.executable, "-c", _MEASURE, what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1.0 < float(done.stdout) < 1.3
