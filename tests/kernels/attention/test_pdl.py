"""The attention kernels let the kernel behind them start early: a product that loads its weights meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from etcuda.kernels.attention.triton.split import attention_reduce_pdl, attention_split_kernel, attention_split_pdl
from tests.kernels.offline import compile_kernel

TRIGGER, WAIT = "griddepcontrol.launch_dependents", "griddepcontrol.wait"
POINTERS = {"out": "*bf16", "q": "*bf16", "k": "*bf16", "v": "*bf16", "partial": "*fp32", "stats": "*fp32"}
COMMON = {
    "kv_len": None,
    "MAX_Q": 16,
    "CAUSAL": 3,
    "WINDOW": 0,
    "HAS_LEN": False,
    "RING": 0,
    "SINKS": False,
    "sinks": None,
}


def ptx(kernel: Any, constants: dict[str, Any]) -> str:
    types = dict.fromkeys(kernel.arg_names, "i32")
    types |= {**POINTERS, "positions": "*i64", "qk_scale": "fp32"}
    return compile_kernel(kernel, types, COMMON | constants, 4, "ptx")


def test_the_reduction_starts_the_next_kernel_before_it_waits() -> None:
    text = ptx(attention_reduce_pdl, {"HEAD_DIM": 64, "BLOCK_S": 2, "CHUNK_D": 64})
    assert 0 < text.index(TRIGGER) < text.index(WAIT)


@pytest.mark.parametrize("merged", [False, True])
def test_the_splits_wait_before_they_start_the_next_kernel(merged: bool) -> None:
    # The reduction loads lengths and positions before it waits: what is in front of the splits must have ended.
    constants = {
        "mask": None, "KV_HEADS": 2, "GROUP": 2, "HEAD_DIM": 64, "BLOCK_D": 64, "BLOCK_M": 16, "BLOCK_N": 32,
        "STAGES": 2, "SOFTCAP": 0.0, "MASK": 0, "MERGED": merged,
    }  # fmt: skip
    if not merged:
        constants |= {"partial": None, "stats": None}
    text = ptx(attention_split_pdl, constants)
    assert 0 < text.index(WAIT) < text.index(TRIGGER) < text.index("ld.global")
    assert "griddepcontrol" not in ptx(attention_split_kernel, constants)
