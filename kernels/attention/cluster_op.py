"""The operator ``etcuda::attention_cluster``: attention of few query rows as one kernel, on Hopper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.attention.check import check_arguments
from etcuda.kernels.attention.hopper.decode import ARCH, HEAD_DIMS, MAX_ROWS, ClusterConfig, fits, native_decode
from etcuda.kernels.attention.hopper.stand_in import attention_cluster_kernel, attention_cluster_pdl
from etcuda.kernels.attention.launch import LOG2E, Masking, empty_like_result
from etcuda.kernels.attention.problem import MAX_QUERY
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.common.blocks import INTERPRETED
from etcuda.kernels.common.check import expect
from etcuda.kernels.common.memory import aligned, needs_reference
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.cuda import native_kernels
from etcuda.kernels.formats.base import DTYPES

OP = "attention_cluster"


@triton_op("etcuda::attention_cluster", mutates_args=())
def attention_cluster(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kv_len: Tensor | None,
    positions: Tensor | None,
    scale: float,
    causal: int,
    window: int,
    softcap: float,
    cluster: int,
    threads: int,
    unroll: int,
    pdl: int,
    sinks: Tensor | None = None,
    ring: bool = False,
) -> Tensor:
    """Attention of 1, 2, 4 or 8 rows of a KV head, on a CPU by its reference. As of ``attention_split``, but for:

    Args:
        q: of fixed sizes, and a head_dim of 64, 128, 256 or 512.
        k: contiguous, like ``v``.
        mask: ``None``.
        cluster: this and the rest as of ``ClusterConfig``.
    """
    _check(q, k, v, mask, kv_len, positions, scale, causal, window, softcap, cluster, threads, unroll, pdl, sinks, ring)
    if needs_reference(q) or INTERPRETED:
        computed = attention_reference(q, k, v, None, kv_len, positions, scale, causal, window, softcap, sinks, ring)
        return empty_like_result(q).copy_(computed)
    masking = Masking(None, kv_len, positions, scale, causal, window, softcap, sinks, ring)
    return _launch(q, k, v, masking, ClusterConfig(cluster, threads, unroll, pdl))


def _launch(q: Tensor, k: Tensor, v: Tensor, masking: Masking, config: ClusterConfig) -> Tensor:
    batch, heads, l_q, head_dim = q.shape
    kv_heads, l_kv = k.shape[1], k.shape[2]
    out = empty_like_result(q)
    q, k, v = (aligned(each.contiguous(), 16) for each in (q, k, v))
    lengths = None if masking.kv_len is None else masking.kv_len.contiguous()
    positions = None if masking.positions is None else masking.positions.contiguous()
    sinks = None if masking.sinks is None else masking.sinks.contiguous()
    made = native_decode(
        config, dtype=_name(q), length_bytes=0 if lengths is None else lengths.element_size(),
        position_bytes=0 if positions is None else positions.element_size(),
        position_stride=l_q if positions is not None and positions.dim() == 2 and positions.shape[0] > 1 else 0,
        sinks_dtype="" if sinks is None else _name(sinks), kv_heads=kv_heads, group=heads // kv_heads, l_q=l_q,
        head_dim=head_dim, causal=masking.causal, window=masking.window, ring=masking.ring,
        scale=masking.scale * LOG2E, softcap=masking.softcap,
    )  # fmt: skip
    kernel, early = choose_kernel(q, attention_cluster_kernel, attention_cluster_pdl, config.pdl)
    with native_kernels():
        # The queries stand in for what is absent.
        kernel[(config.cluster, kv_heads, batch)](
            q, k, v, *(q if each is None else each for each in (lengths, positions, sinks)), out, l_kv + 2,
            MARK=made.mark, **early,
        )  # fmt: skip
    return out


def fake_cluster(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_len: Tensor | None, positions: Tensor | None,
    scale: float, causal: int, window: int, softcap: float, cluster: int, threads: int, unroll: int, pdl: int,
    sinks: Tensor | None = None, ring: bool = False,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    _check(q, k, v, mask, kv_len, positions, scale, causal, window, softcap, cluster, threads, unroll, pdl, sinks, ring)
    return empty_like_result(q)


attention_cluster.register_fake(fake_cluster)


def refuse_cluster(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None) -> str | None:
    """Why the kernel does not serve tensors that ``attention_split`` serves, in words; ``None`` if it does."""
    if mask is not None:
        return "there is a mask tensor"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not all(isinstance(size, int) for size in tensor.shape):
            return f"{name} has no fixed size, {tuple(tensor.shape)}"
    if not (k.is_contiguous() and v.is_contiguous()):
        return "keys and values are not contiguous"
    rows = q.shape[2] * (q.shape[1] // k.shape[1])
    if q.shape[3] not in HEAD_DIMS:
        return f"head_dim is one of {HEAD_DIMS}, got {q.shape[3]}"
    if rows not in (1, 2, 4, 8):
        return f"a KV head has 1, 2, 4 or {MAX_ROWS} rows, got {rows}"
    if sinks is not None and sinks.dtype not in DTYPES:
        return f"sinks are bfloat16, float16 or float32, got {sinks.dtype}"
    return None


def _check(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_len: Tensor | None, positions: Tensor | None,
    scale: float, causal: int, window: int, softcap: float, cluster: int, threads: int, unroll: int, pdl: int,
    sinks: Tensor | None, ring: bool,
) -> None:  # fmt: skip
    check_arguments(OP, q, k, v, mask, kv_len, positions, scale, causal, window, softcap, MAX_QUERY, sinks, ring)
    reason = refuse_cluster(q, k, v, mask, sinks)
    expect(reason is None, OP, "q", "a call that the kernel serves", reason, "Use attention_split.")
    expect(cluster in (1, 2, 4, 8), OP, "cluster", "1, 2, 4 or 8 CTAs", cluster)
    expect(threads in (128, 256, 512), OP, "threads", "128, 256 or 512", threads)
    expect(unroll in (1, 2, 4, 8), OP, "unroll", "1, 2, 4 or 8 keys", unroll)
    rows = q.shape[2] * (q.shape[1] // k.shape[1])
    config = ClusterConfig(cluster, threads, unroll, pdl)
    got = f"{threads} threads of {unroll} keys with {rows} rows of {q.shape[3]}"
    expect(fits(config, q.shape[3], rows), OP, "threads", "a configuration that fits a multiprocessor", got)
    if not needs_reference(q) and not INTERPRETED:
        # A tensor that is on no GPU yet belongs to a program for the one that the kernel is for.
        real = type(q) is Tensor and q.device.type == "cuda"
        arch = "sm_{}{}".format(*torch.cuda.get_device_capability(q.device)) if real else ARCH
        expect(arch == ARCH, OP, "q", f"a tensor on {ARCH}", arch, "Use attention_split.")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
