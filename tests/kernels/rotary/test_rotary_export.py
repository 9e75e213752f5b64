"""A whole export for a GPU that is not here: one kernel rotates and writes, and no cache is copied."""

from __future__ import annotations

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

from etcuda import CudaPartitioner
from etcuda.backend.inspect import inspect_program
from tests.passes.attention.rotary_programs import Attention, exported, halves_in_fp32, llama_norm


@pytest.mark.slow
def test_one_kernel_between_product_and_attention() -> None:
    model = Attention(halves_in_fp32, norm=llama_norm)
    with torch.no_grad():
        program = exported(model, 1)
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target="sm_90")]).to_executorch()
    (delegate,) = inspect_program(bytes(lowered.buffer)).methods[0].delegates
    names = set(delegate.images[0].kernels)
    assert {"rotary_cache_pdl", "attention_split_pdl"} <= names
    # Beside them cos and sin are looked up, and nothing else is computed: a cache not written in place would be copied.
    others = names - {"rotary_cache_pdl", "attention_split_pdl"}
    assert 1 <= len(others) <= 2
    assert all("index" in other for other in others)
    assert not any(word in other for other in others for word in ("index_put", "clone", "copy"))
