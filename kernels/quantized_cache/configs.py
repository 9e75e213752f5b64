"""Configurations of ``etcuda::quantized_attention``, and the choice among them."""

from __future__ import annotations

import dataclasses
import math

from etcuda.kernels.attention.configs import TiledConfig
from etcuda.kernels.attention.problem import MIN_BLOCK
from etcuda.kernels.attention.select import choose_tiled
from etcuda.kernels.common.device import Device
from etcuda.kernels.quantized_cache.problem import QuantizedProblem

# Rows up to which keys are split among CTAs: more rows make CTAs enough by themselves.
MAX_SPLIT_ROWS = 16
_MOST_SPLITS = 256
# Of a tile's accumulator, fp32 numbers, for each warp.
_ACCUMULATOR_OF_WARP = 4096


@dataclasses.dataclass(frozen=True)
class QuantizedConfig:
    """The operator's trailing arguments.

    Attributes:
        block_m: rows (query, head of the group) of a tile.
        block_n: keys of a step.
        num_warps: warps of a CTA.
        num_stages: steps whose loads are in flight.
        num_splits: ranges that the keys are split into.
        one_loop: this and ``section`` as of ``TiledConfig``.
        section: if not 0, the cache is decoded in front, and the kernel of caches that are not coded attends.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    num_splits: int
    one_loop: int = 0
    section: int = 0

    def to_args(self) -> tuple[int, ...]:
        """The operator's trailing arguments; the constructor is the way back."""
        return dataclasses.astuple(self)


# Right for every call, if not fast: what a call in a model names, and a pass replaces for the GPU of an export.
UNCHOSEN = QuantizedConfig(16, 32, 4, 2, 1)


def choose(problem: QuantizedProblem, device: Device) -> QuantizedConfig:
    """The configuration for a problem that the kernel serves.

    A few rows share a tile, and the keys are split so that there are two CTAs for each multiprocessor, or three of
    narrow heads, which take fewer registers. For more rows the cache is decoded once, and the kernel of bfloat16 and
    float16 caches attends; in float32 it is decoded tile by tile.
    """
    call = problem.attention
    most = call.most_rows
    few = most is not None and most <= MAX_SPLIT_ROWS
    is_fp32 = call.dtype.itemsize == 4
    rows = (most if few and most is not None else max(call.l_q, MAX_SPLIT_ROWS + 1)) * call.group
    widest = 16 if is_fp32 else min(64, max(16, 16384 // call.block_d))
    block_m = min(widest, max(MIN_BLOCK, 1 << (rows - 1).bit_length()))
    block_n = 32 if is_fp32 or call.block_d > 256 else 64
    num_warps = 8 if block_m * call.block_d > _ACCUMULATOR_OF_WARP * 2 else 4
    if not few and not is_fp32:
        tiled = choose_tiled(call, device).config
        assert isinstance(tiled, TiledConfig)
        return QuantizedConfig(
            tiled.block_m, tiled.block_n, tiled.num_warps, tiled.num_stages, 1, tiled.one_loop, tiled.section
        )
    if not few:
        return QuantizedConfig(block_m, block_n, num_warps, 2, 1)
    tiles = call.batch * call.num_kv_heads * math.ceil(rows / block_m)
    steps = max(1, math.ceil(call.visible_keys / block_n))
    waves = 3 if call.block_d <= 128 else 2
    splits = min(steps, _MOST_SPLITS, max(1, waves * device.num_sms // tiles))
    return QuantizedConfig(block_m, block_n, num_warps, 2 if is_fp32 else 3, splits)
