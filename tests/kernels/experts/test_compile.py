"""Kernels of experts with biases and GPT-OSS's activation compile for a GPU that is not here."""

from __future__ import annotations

from typing import Any

import pytest

from etcuda.kernels.common.blocks import GROUPS_FIRST
from etcuda.kernels.experts.triton import few_dense, few_quantized
from etcuda.kernels.experts.triton.grouped import grouped_pdl
from tests.kernels.offline import compile_kernel

_STORED = {
    "qdata": "*u8", "scale": "*fp16", "zero": "*u8", "scale_step": "*fp16", "zero_step": "*fp16", "bias": "*bf16",
}  # fmt: skip
_INT4 = {"K": 256, "BITS": 4, "GROUP": 32, "OFFSET": "zero_point", "SCALE_CODES": False, "HAS_BIAS": True, "TOP_K": 2}
_FEW = {"BLOCK_N": 16, "BLOCKS": 8, "GROUPS_FIRST": GROUPS_FIRST}
_X = {"x": "*bf16", "indices": "*i32"}
_GROUPED = {
    "x": "*fp16", "factor": "*fp32", "order": "*i32", "tiles": "*i32", **_STORED, "out": "*bf16", "out_features": "i32",
}  # fmt: skip
_TILE = {"WIDTH": 256, "BLOCK_N": 64, "BLOCK_M": 32, "BLOCKS": 4, "STAGES": 2}
_DENSE = {"K": 256, "TOP_K": 2, "HAS_BIAS": True, "BLOCK_N": 4, "BLOCK_K": 256}
_OAI: dict[str, Any] = {"ACTIVATION": "swiglu_oai"}
_CASES: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "up": (few_quantized.up_pdl, {**_X, **_STORED, "out": "*bf16", "width": "i32"}, {**_INT4, **_FEW, **_OAI}),
    "down": (
        few_quantized.down_pdl, {**_X, "routing": "*bf16", **_STORED, "out": "*bf16", "out_features": "i32"},
        {**_INT4, **_FEW},
    ),
    "dense up": (
        few_dense.dense_up_pdl, {**_X, "weight": "*bf16", "bias": "*bf16", "out": "*bf16", "width": "i32"},
        {**_DENSE, **_OAI},
    ),
    "dense down": (
        few_dense.dense_down_pdl,
        {**_X, "routing": "*bf16", "weight": "*bf16", "bias": "*bf16", "out": "*bf16", "out_features": "i32"}, _DENSE,
    ),
    "grouped": (grouped_pdl, _GROUPED, {**_INT4, **_TILE, **_OAI}),
    "grouped, not gated": (grouped_pdl, _GROUPED, {**_INT4, **_TILE, "ACTIVATION": "none"}),
}  # fmt: skip


@pytest.mark.parametrize("name", _CASES)
def test_kernels_with_biases_compile(name: str) -> None:
    function, types, constants = _CASES[name]
    assert ".target sm_90" in compile_kernel(
        function, types, constants, 4, "ptx", {"width", "out_features"} & set(types)
    )
