"""Attention of few query rows as one kernel of clusters on Hopper: what it takes, and how it is compiled."""

from __future__ import annotations

import dataclasses
import struct

from etcuda.kernels.cuda import DTYPE_CODES, Native

ARCH = "sm_90"
HEAD_DIMS = (16, 32, 64, 128, 256, 512)
# One step was enough for few keys; at 4,096 each of eight steps waited for memory.
AHEAD = 4
MAX_ROWS = 8  # Of a KV head; a power of two.
# Registers of a CTA, of the 64 Ki of a multiprocessor, that leave room for CTAs of the product behind.
_ROOM = 44 << 10
# Registers that loads and sums of a thread may take together, by the threads of a CTA.
_MOST_WORDS = {128: 216, 256: 216, 512: 100}


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Of ``etcuda::attention_cluster``, whose trailing arguments these are.

    Attributes:
        cluster: CTAs that share the keys of a KV head: 1, 2, 4 or 8.
        threads: of a CTA.
        unroll: keys that a thread loads at a time, 1, 2, 4 or 8.
        pdl: 1 to launch the kernel while the one in front of it runs, and the one behind it while this one runs.
    """

    cluster: int
    threads: int
    unroll: int
    pdl: int

    def to_args(self) -> tuple[int, ...]:
        """The operator's trailing arguments; the constructor is the way back."""
        return dataclasses.astuple(self)


def fits(config: ClusterConfig, head_dim: int, rows: int) -> bool:
    """Whether the kernel can have the configuration, for so many rows of a KV head."""
    if head_dim not in HEAD_DIMS or rows not in (1, 2, 4, 8):
        return False
    groups = config.threads // min(32, head_dim // 8)
    words = _words(config, head_dim, rows)
    shared = shared_bytes(config, head_dim, rows)
    return config.threads // min(groups, 32) >= rows and words <= _MOST_WORDS[config.threads] and shared <= 160 << 10


def leaves_room(config: ClusterConfig, head_dim: int, rows: int) -> bool:
    """Whether CTAs of the product behind find registers beside a CTA, to load their weights meanwhile.

    In a step that is worth more than attention's own time: docs/experiments/attention-one-kernel.md.
    """
    return config.threads * _words(config, head_dim, rows) * 4 // 3 <= _ROOM


def _words(config: ClusterConfig, head_dim: int, rows: int) -> int:
    """Of a thread: keys and values as they were loaded, queries, sums, and the products of all keys with all rows."""
    pieces = head_dim // 8 // min(32, head_dim // 8)
    return pieces * (8 * config.unroll + 12 * rows) + rows * config.unroll


def shared_bytes(config: ClusterConfig, head_dim: int, rows: int) -> int:
    """Bytes of shared memory of a CTA, as decode.cu lays them out."""
    groups = config.threads // min(32, head_dim // 8)
    sums = groups * rows * (config.unroll + head_dim + 2) + 2 * rows
    return 4 * (sums + rows * head_dim + 2 * config.cluster * rows)


def native_decode(
    config: ClusterConfig,
    *,
    dtype: str,
    length_bytes: int,
    position_bytes: int,
    position_stride: int,
    sinks_dtype: str,
    kv_heads: int,
    group: int,
    l_q: int,
    head_dim: int,
    causal: int,
    window: int,
    ring: bool,
    scale: float,
    softcap: float,
    ahead: int = AHEAD,
) -> Native:
    """The kernel in decode.cu for one kind of call. ``scale`` is the logits' times log2(e).

    ``ahead``: steps of a CTA whose keys are brought to the L2 cache before they are read, the first of them while the
    kernel in front runs; 0 brings none.
    """
    defines = {
        "DTYPE": DTYPE_CODES[dtype], "LENGTH_DTYPE": length_bytes, "POSITION_DTYPE": position_bytes,
        "POSITION_STRIDE": position_stride, "SINKS": 1 + DTYPE_CODES[sinks_dtype] if sinks_dtype else 0,
        "CLUSTER": config.cluster, "THREADS": config.threads, "UNROLL": config.unroll, "KV_HEADS": kv_heads,
        "GROUP": group, "L_Q": l_q, "HEAD_DIM": head_dim, "CAUSAL": causal, "WINDOW": window, "RING": int(ring),
        "SCALE": _bits(scale), "SOFTCAP": _bits(softcap), "AHEAD": ahead, "PDL": config.pdl,
    }  # fmt: skip
    shared = shared_bytes(config, head_dim, group * l_q)
    return Native("attention/hopper/decode.cu", ARCH, config.threads, shared, tuple(defines.items()))


def _bits(number: float) -> int:
    (found,) = struct.unpack("<i", struct.pack("<f", number))
    return int(found)
