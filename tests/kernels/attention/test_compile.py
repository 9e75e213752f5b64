"""The attention kernels with a ring, sinks and a soft cap, compiled for other GPUs: they fit their shared memory."""

from __future__ import annotations

from typing import Any

import pytest

from etcuda.kernels.attention.configs import SplitConfig, TiledConfig
from etcuda.kernels.attention.problem import POSITIONS, AttentionProblem
from etcuda.kernels.attention.select import choose_split, choose_tiled
from etcuda.kernels.attention.triton.split import attention_reduce_kernel, attention_split_kernel
from etcuda.kernels.attention.triton.tiled import attention_tiled_kernel
from etcuda.target import CudaTarget, resolve_target
from tests.kernels.offline import shared_bytes

_POINTERS = dict.fromkeys(("q", "k", "v", "out", "sinks"), "*bf16") | {"partial": "*fp32", "stats": "*fp32"}


def compiled(kernel: Any, target: CudaTarget, num_warps: int, **constants: Any) -> int:
    types = dict.fromkeys(kernel.arg_names, "i32") | _POINTERS | {"positions": "*i64", "qk_scale": "fp32"}
    given = {"mask": None, "kv_len": None, "MASK": 0, "HAS_LEN": False, "MAX_Q": 16, "SOFTCAP": 30.0}
    given |= {"CAUSAL": POSITIONS, "WINDOW": 512, "RING": 1, "SINKS": True, **constants}
    chosen = {name: value for name, value in given.items() if name in kernel.arg_names}
    return shared_bytes(kernel, types, chosen, num_warps, 10 * target.major + target.minor)


@pytest.mark.parametrize(("arch", "head_dim"), [("portable", 64), ("portable", 256), ("sm_90", 128), ("sm_90", 512)])
def test_kernels_fit_shared_memory(arch: str, head_dim: int) -> None:
    target = resolve_target(arch)
    assert isinstance(target, CudaTarget)
    problem = AttentionProblem(1, 16, 8, head_dim, 1, 1023, causal=POSITIONS, window=512)
    sizes = {"HEAD_DIM": head_dim, "BLOCK_D": head_dim, "GROUP": 2, "KV_HEADS": 8}
    split = choose_split(problem, target).config
    assert isinstance(split, SplitConfig)
    blocks = {"BLOCK_M": split.block_m, "BLOCK_N": split.block_n, "STAGES": split.num_stages, "MERGED": True}
    most = target.shared_memory_per_block
    assert 0 < compiled(attention_split_kernel, target, split.num_warps, **sizes, **blocks) <= most
    merge = {"BLOCK_S": split.block_s, "CHUNK_D": split.chunk_d}
    assert compiled(attention_reduce_kernel, target, 4, **sizes, **merge) <= most
    many = AttentionProblem(1, 16, 8, head_dim, 512, 1023, causal=POSITIONS, window=512)
    tiled = choose_tiled(many, target).config
    assert isinstance(tiled, TiledConfig)
    blocks = {"BLOCK_M": tiled.block_m, "BLOCK_N": tiled.block_n, "STAGES": tiled.num_stages}
    one_loop = tiled.one_loop == 1
    assert 0 < compiled(attention_tiled_kernel, target, tiled.num_warps, **sizes, **blocks, ONE_LOOP=one_loop) <= most
