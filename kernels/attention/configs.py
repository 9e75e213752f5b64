"""Configurations of the attention kernels: which are worth measuring, and a guess where nothing was measured."""

from __future__ import annotations

import dataclasses
import itertools
import math

from etcuda.kernels.attention.hopper.decode import ClusterConfig, fits
from etcuda.kernels.attention.problem import MIN_BLOCK, AttentionProblem
from etcuda.kernels.common.device import Device, supports_pdl

# A tile's accumulator is block_m x block_d fp32 numbers, held in the registers of at most 8 warps.
_MOST_ACCUMULATORS = 32768
_MOST_ROWS = 128
# Values that one CTA of the reduction loads at once.
_MOST_MERGED = 4096
# How much of the L2 cache keys and values may fill, where nothing was measured: the rest is for all else.
_L2_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Of ``etcuda::attention_split``, whose trailing arguments these are.

    Attributes:
        block_m: rows (query, head of the group) of a tile.
        block_n: keys of a step.
        num_warps: warps of a CTA.
        num_stages: steps whose loads are in flight.
        num_splits: ranges that the keys are split into.
        block_s: splits that a CTA merges at a time.
        chunk_d: width of the head that a CTA merges.
        pdl: 1 to launch the reduction while the splits are computed, and a kernel behind attention that waits while
            the last of the two runs, which needs sm_90; else 0.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    num_splits: int
    block_s: int
    chunk_d: int
    pdl: int

    def to_args(self) -> tuple[int, ...]:
        """The operator's trailing arguments; the constructor is the way back."""
        return dataclasses.astuple(self)


@dataclasses.dataclass(frozen=True)
class TiledConfig:
    """Of ``etcuda::attention_tiled``, whose trailing arguments these are.

    Attributes:
        block_m: query rows of one head in a tile.
        block_n: keys of a step.
        num_warps: warps of a CTA.
        num_stages: steps whose loads are in flight.
        one_loop: 1 for one loop over all keys, 0 for three, of which two mask.
        section: heads, over all batch rows, whose CTAs run at a time.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    one_loop: int
    section: int

    def to_args(self) -> tuple[int, ...]:
        """The operator's trailing arguments; the constructor is the way back."""
        return dataclasses.astuple(self)


def split_rows(problem: AttentionProblem, most_rows: int | None = None) -> int:
    """``block_m`` of the split kernel: all rows of a KV head if a tile can hold them."""
    rows = (most_rows or problem.l_q) * problem.group
    fitting = min(_MOST_ROWS, max(MIN_BLOCK, _MOST_ACCUMULATORS // problem.block_d))
    return min(max(MIN_BLOCK, _power_of_two(rows)), fitting)


def ctas_per_split(problem: AttentionProblem, block_m: int) -> int:
    """CTAs of the split kernel for one split of the keys."""
    tiles = math.ceil(problem.l_q * problem.group / block_m)
    return problem.batch * problem.num_kv_heads * tiles


def with_splits(problem: AttentionProblem, config: SplitConfig, num_ctas: float) -> SplitConfig:
    """The configuration with as many splits as give ``num_ctas`` CTAs in all, at most one a step of keys."""
    steps = max(1, math.ceil(problem.visible_keys / config.block_n))
    wanted = max(1, round(num_ctas / ctas_per_split(problem, config.block_m)))
    splits = min(wanted, steps)
    return with_merge(problem, dataclasses.replace(config, num_splits=splits), config.chunk_d)


def with_merge(problem: AttentionProblem, config: SplitConfig, chunk_d: int) -> SplitConfig:
    """The configuration with a reduction of that width, loading as many splits at once as there are or fit."""
    chunk_d = min(chunk_d, problem.block_d)
    block_s = min(_power_of_two(config.num_splits), max(1, _MOST_MERGED // chunk_d))
    return dataclasses.replace(config, block_s=block_s, chunk_d=chunk_d)


def split_candidates(problem: AttentionProblem, device: Device) -> list[SplitConfig]:
    """What the tuner measures; the first is what export takes without a table.

    The guess: enough CTAs for two per multiprocessor, steps of 64 keys while they fit the shared memory twice.
    """
    block_m = split_rows(problem)
    pdl = int(supports_pdl(device))
    rows_are_many = block_m * problem.block_d > 8192
    warps = (4, 8) if rows_are_many else (4,)
    guess = next((n for n in (64, 32) if _bytes(problem, block_m, n, 2) <= device.shared_memory_per_block), MIN_BLOCK)
    found: dict[SplitConfig, None] = {}
    for block_n, num_warps, stages in itertools.product((guess, 128, 64, 32, 16), warps, (2, 3, 4)):
        if _bytes(problem, block_m, block_n, stages - 1) > device.shared_memory_per_block:
            continue
        base = SplitConfig(block_m, block_n, num_warps, stages, 1, 1, 64, pdl)
        if block_n == MIN_BLOCK and guess != MIN_BLOCK:
            continue
        for waves in (2.0, 0.5, 1.0, 1.5, 3.0, 4.0, 0.0):
            found.setdefault(with_splits(problem, base, waves * device.num_sms))
    if not found:
        found[SplitConfig(block_m, MIN_BLOCK, 4, 1, 1, 1, 64, pdl)] = None
    return list(found)


def cluster_candidates(problem: AttentionProblem, device: Device) -> list[ClusterConfig]:
    """What the tuner measures; none where the kernel does not serve the problem."""
    shapes = [(8, 256, 4), (8, 512, 4), (8, 256, 2), (8, 512, 2), (8, 128, 4), (8, 256, 8), (8, 256, 1), (4, 256, 4)]
    rows = problem.l_q * problem.group
    pdl = int(supports_pdl(device))
    found = [ClusterConfig(cluster, threads, unroll, pdl) for cluster, threads, unroll in shapes]
    return [config for config in found if fits(config, problem.head_dim, rows)]


def merge_candidates(problem: AttentionProblem, config: SplitConfig) -> list[SplitConfig]:
    """The same configuration with other widths of the reduction."""
    if config.num_splits == 1:
        return [config]
    widths = [width for width in (16, 32, 64, 128, 256) if width <= problem.block_d]
    return list(dict.fromkeys(with_merge(problem, config, width) for width in widths))


def tiled_candidates(problem: AttentionProblem, device: Device) -> list[TiledConfig]:
    """What the tuner measures; the first is what export takes without a table: the largest tile that fits, 8 warps."""
    found: list[TiledConfig] = []
    section = section_within(problem, device.l2_bytes * _L2_SHARE)
    shapes = itertools.product((128, 64, 32, 16), (64, 128, 32, 16), (3, 2), (8, 4), (1, 0))
    for block_m, block_n, stages, warps, one_loop in shapes:
        if block_m > max(MIN_BLOCK, _power_of_two(problem.l_q)):
            continue
        least = 64 if problem.block_d <= 128 else 32
        if block_m < least <= problem.l_q or (block_n < 32 and problem.block_d <= 256):
            continue
        too_wide = block_m * problem.block_d > _MOST_ACCUMULATORS * warps // 8
        fits = _bytes(problem, block_m, block_n, stages) <= device.shared_memory_per_block
        if fits and not too_wide and not (block_m < 32 and warps == 8):
            found.append(TiledConfig(block_m, block_n, warps, stages, one_loop, section))
    return found or [TiledConfig(MIN_BLOCK, MIN_BLOCK, 4, 1, 1, section)]


def section_candidates(problem: AttentionProblem, config: TiledConfig) -> list[TiledConfig]:
    """The same configuration with other numbers of heads that run at a time."""
    all_heads = problem.batch * problem.num_heads
    sizes = dict.fromkeys([1, *(problem.group << power for power in range(6)), all_heads])
    return [dataclasses.replace(config, section=size) for size in sizes if size <= all_heads]


def section_within(problem: AttentionProblem, nbytes: float) -> int:
    """The number of heads, in whole groups, whose keys and values in sight fill at most ``nbytes``; at least one group.

    A window bounds what the CTAs that run at a time read, not what they read in all.
    """
    groups = int(nbytes / max(1, _bytes_in_sight(problem)))
    return problem.group * min(max(groups, 1), problem.batch * problem.num_kv_heads)


def scaled_section(measured: AttentionProblem, section: int, asked: AttentionProblem) -> int:
    """The number of heads that reads as many bytes at a time as ``section`` heads of the measured problem did.

    All heads of a measured problem say nothing of a limit, so they stay all.
    """
    if section >= measured.batch * measured.num_heads and _bytes_in_sight(asked) <= _bytes_in_sight(measured):
        return asked.batch * asked.num_heads
    return section_within(asked, section / measured.group * _bytes_in_sight(measured))


def _bytes_in_sight(problem: AttentionProblem) -> int:
    """Bytes of the keys and values of one KV head that CTAs read at about the same time."""
    return 2 * min(problem.visible_keys, problem.window or problem.l_kv) * problem.head_dim * problem.dtype.itemsize


def _bytes(problem: AttentionProblem, block_m: int, block_n: int, stages: int) -> int:
    return (2 * stages * block_n + block_m) * problem.block_d * problem.dtype.itemsize


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
