"""Configurations of the attention kernels: which are worth measuring, and a guess where nothing was measured."""

from __future__ import annotations

import dataclasses
import itertools
import math

from etcuda.kernels.attention.problem import MIN_BLOCK, AttentionProblem
from etcuda.kernels.registry import Device

# A tile's accumulator is block_m x block_d fp32 numbers, held in the registers of at most 8 warps.
_MOST_ACCUMULATORS = 32768
_MOST_ROWS = 128
# Values that one block of the reduction loads at once.
_MOST_MERGED = 4096


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Trailing arguments of ``etcuda::attention_split``, in order."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    num_splits: int
    block_s: int
    chunk_d: int


@dataclasses.dataclass(frozen=True)
class TiledConfig:
    """Trailing arguments of ``etcuda::attention_tiled``, in order."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def split_rows(problem: AttentionProblem, most_rows: int | None = None) -> int:
    """``block_m`` of the split kernel: all rows of a KV head if a tile can hold them."""
    rows = (most_rows or problem.l_q) * problem.group
    fitting = min(_MOST_ROWS, max(MIN_BLOCK, _MOST_ACCUMULATORS // problem.block_d))
    return min(max(MIN_BLOCK, _power_of_two(rows)), fitting)


def parallel_blocks(problem: AttentionProblem, block_m: int) -> int:
    """Blocks of the split kernel for one part of the keys."""
    tiles = math.ceil(problem.l_q * problem.group / block_m)
    return problem.batch * problem.num_kv_heads * tiles


def with_splits(problem: AttentionProblem, config: SplitConfig, num_blocks: float) -> SplitConfig:
    """The configuration with as many parts as give ``num_blocks`` blocks in all, at most one a step of keys."""
    steps = max(1, math.ceil(problem.visible_keys / config.block_n))
    wanted = max(1, round(num_blocks / parallel_blocks(problem, config.block_m)))
    splits = min(wanted, steps)
    return with_merge(problem, dataclasses.replace(config, num_splits=splits), config.chunk_d)


def with_merge(problem: AttentionProblem, config: SplitConfig, chunk_d: int) -> SplitConfig:
    """The configuration with a reduction of that width, loading as many parts at once as there are or fit."""
    chunk_d = min(chunk_d, problem.block_d)
    block_s = min(_power_of_two(config.num_splits), max(1, _MOST_MERGED // chunk_d))
    return dataclasses.replace(config, block_s=block_s, chunk_d=chunk_d)


def split_candidates(problem: AttentionProblem, device: Device) -> list[SplitConfig]:
    """What the tuner measures; the first is what export takes without a table.

    The guess: enough blocks for two per multiprocessor, steps of 64 keys while they fit the shared memory twice.
    """
    block_m = split_rows(problem)
    rows_are_many = block_m * problem.block_d > 8192
    warps = (4, 8) if rows_are_many else (4,)
    guess = next((n for n in (64, 32) if _bytes(problem, block_m, n, 2) <= device.shared_memory_per_block), MIN_BLOCK)
    found: dict[SplitConfig, None] = {}
    for block_n, num_warps, stages in itertools.product((guess, 128, 64, 32, 16), warps, (2, 3, 4)):
        if _bytes(problem, block_m, block_n, stages - 1) > device.shared_memory_per_block:
            continue
        base = SplitConfig(block_m, block_n, num_warps, stages, 1, 1, 64)
        if block_n == MIN_BLOCK and guess != MIN_BLOCK:
            continue
        for waves in (2.0, 0.5, 1.0, 1.5, 3.0, 4.0, 0.0):
            found.setdefault(with_splits(problem, base, waves * device.num_sms))
    if not found:
        found[SplitConfig(block_m, MIN_BLOCK, 4, 1, 1, 1, 64)] = None
    return list(found)


def merge_candidates(problem: AttentionProblem, config: SplitConfig) -> list[SplitConfig]:
    """The same configuration with other widths of the reduction."""
    if config.num_splits == 1:
        return [config]
    widths = [width for width in (16, 32, 64, 128, 256) if width <= problem.block_d]
    return list(dict.fromkeys(with_merge(problem, config, width) for width in widths))


def tiled_candidates(problem: AttentionProblem, device: Device) -> list[TiledConfig]:
    """What the tuner measures; the first is what export takes without a table: the largest tile that fits, 8 warps."""
    found: list[TiledConfig] = []
    shapes = itertools.product((128, 64, 32, 16), (64, 128, 32, 16), (3, 2), (8, 4))
    for block_m, block_n, stages, warps in shapes:
        if block_m > max(MIN_BLOCK, _power_of_two(problem.l_q)):
            continue
        least = 64 if problem.block_d <= 128 else 32
        if block_m < least <= problem.l_q or (block_n < 32 and problem.block_d <= 256):
            continue
        too_wide = block_m * problem.block_d > _MOST_ACCUMULATORS * warps // 8
        fits = _bytes(problem, block_m, block_n, stages) <= device.shared_memory_per_block
        if fits and not too_wide and not (block_m < 32 and warps == 8):
            found.append(TiledConfig(block_m, block_n, warps, stages))
    return found or [TiledConfig(MIN_BLOCK, MIN_BLOCK, 4, 1)]


def _bytes(problem: AttentionProblem, block_m: int, block_n: int, stages: int) -> int:
    return (2 * stages * block_n + block_m) * problem.block_d * problem.dtype.itemsize


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
