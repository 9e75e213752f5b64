"""Experts of GGUF files become stacked matrices of every type, bit for bit."""

from __future__ import annotations

import pathlib
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import nn

import etcuda
from etcuda.errors import GgufError, WeightFormatError
from etcuda.kernels.weights.gguf_blocks import BLOCK_TYPES, from_mxfp4
from etcuda.kernels.weights.gguf_experts import experts_tensors
from etcuda.kernels.weights.tensor import CoalescedTensor
from tests.kernels.weights.test_gguf import random_blocks, write

_EXPERTS, _WIDTH, _HIDDEN = 3, 256, 512


class Experts(nn.Module):
    """Parameters of one layer, named as transformers has them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(_EXPERTS, 2 * _WIDTH, _HIDDEN))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(_EXPERTS, 2 * _WIDTH))
        self.down_proj = nn.Parameter(torch.zeros(_EXPERTS, _HIDDEN, _WIDTH))


def model() -> nn.Module:
    layer = nn.ModuleDict({"experts": Experts()})
    return nn.ModuleDict({"layers": nn.ModuleList([layer])})


def stack(kind: str, n: int, k: int, seed: int) -> Any:
    """Bytes of [experts, n, k]."""
    return np.stack([random_blocks(kind, n, k, seed + expert) for expert in range(_EXPERTS)])


def tensors(kind: str, down: str) -> dict[str, tuple[Any, str]]:
    bias = np.arange(_EXPERTS * _WIDTH, dtype=np.float32).reshape(_EXPERTS, _WIDTH)
    return {
        "blk.0.ffn_gate_exps.weight": (stack(kind, _WIDTH, _HIDDEN, 0), kind),
        "blk.0.ffn_up_exps.weight": (stack(kind, _WIDTH, _HIDDEN, 10), kind),
        "blk.0.ffn_down_exps.weight": (stack(down, _HIDDEN, _WIDTH, 20), down),
        "blk.0.ffn_up_exps.bias": (bias, "F32"),
        "blk.0.ffn_gate_exps.bias": (-bias, "F32"),
    }


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_type_is_stacked(kind: str, tmp_path: pathlib.Path) -> None:
    given = tensors(kind, "Q6_K")
    file = write(tmp_path / "m.gguf", given, "qwen3moe", block_count=1)
    made = model()
    types = etcuda.load_gguf(made, file)
    assert types["layers.0.experts.gate_up_proj"] == kind
    values = {name: gguf.dequantize(data, gguf.GGMLQuantizationType[type_]) for name, (data, type_) in given.items()}
    for name, parameter in made.named_parameters():
        wanted = np.concatenate([values[source] for source in experts_tensors(name)], 1)
        assert isinstance(parameter, CoalescedTensor) == (not name.endswith("bias"))
        got = parameter.dequantize() if isinstance(parameter, CoalescedTensor) else parameter
        assert torch.equal(got, torch.from_numpy(wanted)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blk.0.ffn_up_exps.weight": None}, r"gate_exps\.weight: expected blk\.0\.ffn_up_exps\.weight of its type"),
        (
            {"blk.0.ffn_up_exps.weight": (stack("Q4_0", _WIDTH, _HIDDEN, 0), "Q4_0")},
            r"ffn_up_exps\.weight: expected blk\.0\.ffn_gate_exps\.weight of its type, Q4_0, got Q8_0",
        ),
        (
            {"blk.0.ffn_up_exps.weight": (stack("Q8_0", 32, _HIDDEN, 0), "Q8_0")},
            r"ffn_up_exps\.weight: expected the parameter's shape \[3, 256, 512\], got \[3, 32, 512\]",
        ),
        (
            {"blk.0.ffn_gate_up_exps.weight": (stack("Q8_0", 32, _HIDDEN, 0), "Q8_0")},
            r"ffn_gate_up_exps\.weight: expected the name of a parameter of the model",
        ),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
    given = {name: each for name, each in (tensors("Q8_0", "Q8_0") | changes).items() if each is not None}
    file = write(tmp_path / "m.gguf", given, "qwen3moe", block_count=1)
    with pytest.raises(GgufError, match=message):
        etcuda.load_gguf(model(), file)


def test_scales_of_mxfp4() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(4, 2)
    codes[3] = 8  # Minus zero, whose scale is not read.
    exponents = torch.tensor([104, 127, 143, 0], dtype=torch.uint8)
    qdata, scale = from_mxfp4(codes, exponents, "w")
    assert scale.tolist() == [2.0**-24, 0.5, 2.0**15, 1.0]
    assert (qdata[1] * scale[1])[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert (qdata[1] * scale[1])[8:16].tolist() == [0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert not qdata[3].any()
    for exponent in (103, 144, 255):
        with pytest.raises(WeightFormatError, match=r"w: expected MXFP4 with scales from 2\^-23 to 2\^16, got"):
            from_mxfp4(codes[:1], torch.tensor([exponent], dtype=torch.uint8), "w")
