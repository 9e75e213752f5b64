"""Whole exports for a GPU that is not here: the attention kernels are in the code image."""

from __future__ import annotations

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim

from etcuda import CudaPartitioner
from etcuda.backend.inspect import ImageInfo, inspect_program, kernel_names
from etcuda.target import TARGETS

SPLIT, MERGE, TILED = "attention_split_pdl", "attention_reduce_pdl", "attention_tiled_kernel"


class Layer(torch.nn.Module):
    """One causal attention layer over a cache: 8 heads, 2 KV heads, head_dim 32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(64, (8 + 2 + 2) * 32, bias=False, dtype=dtype)
        self.register_buffer("keys", torch.zeros(1, 2, 4096, 32, dtype=dtype))
        self.register_buffer("values", torch.zeros(1, 2, 4096, 32, dtype=dtype))

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(1, x.shape[1], 12, 32).transpose(1, 2).split([8, 2, 2], dim=1)
        keys = self.keys.index_copy_(2, positions, k)
        values = self.values.index_copy_(2, positions, v)
        mask = torch.arange(4096) <= positions[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(q, keys, values, mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(1, x.shape[1], 256)


def export(dtype: torch.dtype, length: int, dynamic: bool) -> ImageInfo:
    """The code image of a program of one layer."""
    shapes = {"x": {1: Dim("length", min=2, max=4096)}, "positions": {0: Dim("length", min=2, max=4096)}}
    inputs = (torch.zeros(1, length, 64, dtype=dtype), torch.arange(length))
    with torch.no_grad():
        program = torch.export.export(Layer(dtype).eval(), inputs, dynamic_shapes=shapes if dynamic else None)
    lowered = to_edge_transform_and_lower(
        program, partitioner=[CudaPartitioner(target="sm_90", options={"attention_kernels": True})]
    ).to_executorch()
    (delegate,) = inspect_program(bytes(lowered.buffer)).methods[0].delegates
    return delegate.images[0]


@pytest.mark.slow
def test_decode_and_a_dynamic_prompt() -> None:
    image = export(torch.bfloat16, 1, dynamic=False)
    assert {SPLIT, MERGE} <= set(image.kernels)
    assert TILED not in image.kernels
    assert len(image.kernels) <= image.num_kernels
    image = export(torch.float16, 300, dynamic=True)
    assert {SPLIT, TILED} <= set(image.kernels)
    # What the runtime compares with the GPU: two tiles of keys and of values, at the least.
    assert 4 * 32 * 32 * 2 <= image.shared_memory <= TARGETS["sm_90"].shared_memory_per_block
    assert image.largest_kernel.startswith(TILED)


# The decision is tested in tests/passes/attention/test_route.py.
@pytest.mark.exhaustive
@pytest.mark.slow
def test_fp32_goes_to_generated_kernels() -> None:
    image = export(torch.float32, 8, dynamic=True)
    assert not {SPLIT, MERGE, TILED} & set(image.kernels)
    assert image.num_kernels > 0


def test_names_of_kernels() -> None:
    cubin = b"junk\0.text.attention_split_kernel\0.nv.info\0.text.triton_poi_0\0"
    assert kernel_names(cubin) == ("attention_split_kernel", "triton_poi_0")
    assert kernel_names(b".visible .entry attention_tiled_kernel(\n") == ("attention_tiled_kernel",)
    assert kernel_names(b"no .text.here") == ()
