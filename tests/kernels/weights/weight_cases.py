"""Random weights in every format, and their values computed one by one in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.kernels.formats.base import BLOCK, STEP, GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format
from etcuda.kernels.formats.registry import find
from etcuda.kernels.weights.tensor import CoalescedTensor

INT4_FORMATS = [
    *(Int4Format(size) for size in (32, 64, 128, 256)),
    Int4Format(32, "fp16", "zero_point"),
    Int4Format(64, "fp32", "zero_point"),
    Int4Format(128, "fp16", "minimum"),
    Int4Format(32, "fp32", "minimum"),
    Int4Format(32, "codes", "symmetric"),
    Int4Format(32, "codes", "minimum"),
    Int4Format(256, "codes", "minimum"),
]
INT8_FORMATS = [
    *(Int8Format(size) for size in (16, 32, 256)),
    Int8Format(512),  # The whole row.
    Int8Format(32, "fp32"),
    Int8Format(64, "fp16", "minimum"),
    Int8Format(16, "codes"),
    Int8Format(32, "codes", "minimum"),
]
FORMATS = [*INT4_FORMATS, *INT8_FORMATS]


def random_components(weight_format: GroupFormat, *shape: int, seed: int = 0) -> dict[str, Tensor]:
    """Stored tensors of a weight [*, N, K] with random bytes and random finite scales, negative ones too."""
    generator = torch.Generator().manual_seed(seed)
    components = {}
    for name, (size, dtype) in weight_format.components(*shape).items():
        if dtype.is_floating_point:
            components[name] = (torch.randn(size, generator=generator) * 0.1).to(dtype)
        else:
            info = torch.iinfo(dtype)
            components[name] = torch.randint(info.min, info.max + 1, size, generator=generator, dtype=dtype)
    return components


def random_weight(
    weight_format: GroupFormat, *shape: int, activation_dtype: str = "exact", dtype: torch.dtype = torch.float32
) -> CoalescedTensor:
    """One of our tensors [*, N, K] with random stored tensors."""
    components = random_components(weight_format, *shape)
    made: CoalescedTensor = find(weight_format.name).tensor_type.from_components(
        components, weight_format.group_size, activation_dtype, dtype
    )
    return made


def values_one_by_one(weight_format: GroupFormat, components: dict[str, Tensor], n: int, k: int) -> Tensor:
    """Values float64 [n, k] by the README's words, in plain Python."""
    lists = {name: tensor.tolist() for name, tensor in components.items()}
    out = []
    for row in range(n):
        values = []
        for column in range(k):
            group, step = column // weight_format.group_size, column // STEP
            if weight_format.bits == 4:
                block, inside = divmod(column, BLOCK)
                byte = lists["qdata"][row][block * 16 + inside % 16]
                q = byte % 16 if inside < 16 else byte // 16
            else:
                q = lists["qdata"][row][column]
            scale = lists["scale"][row][group]
            if weight_format.scale_storage == "codes":
                scale = lists["scale_step"][row][step] * scale
            if weight_format.offset == "symmetric":
                values.append(scale * (q - (8 if weight_format.bits == 4 else 0)))
            elif weight_format.offset == "zero_point":
                values.append(scale * (q - lists["zero"][row][group]))
            elif weight_format.scale_storage == "codes":
                values.append(scale * q - lists["zero_step"][row][step] * lists["zero"][row][group])
            else:
                values.append(scale * q + lists["zero"][row][group])
        out.append(values)
    return torch.tensor(out, dtype=torch.float64)
