"""The operators ``etcuda::quantized_cache_store`` and ``etcuda::quantized_attention``."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.kernels.attention.launch import empty_like_result
from etcuda.kernels.common.memory import needs_reference
from etcuda.kernels.quantized_cache import launch
from etcuda.kernels.quantized_cache.check import check_attention, check_store
from etcuda.kernels.quantized_cache.configs import QuantizedConfig
from etcuda.kernels.quantized_cache.reference import quantized_attention_reference, store_reference


@triton_op("etcuda::quantized_cache_store", mutates_args=())
def quantized_cache_store(
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    k_scale: Tensor,
    v_cache: Tensor,
    v_scale: Tensor,
    format: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes keys and values and writes them to caches. It is functional, as graphs are: in a compiled program nothing
    reads the old caches any more, and the kernel writes to them in place; eager calls copy them.

    Args:
        k: [batch, num_kv_heads, L, head_dim] bfloat16, float16 or float32, any strides.
        v: likewise.
        positions: [L] int32 or int64, the place of each token. Negative ones count from the end; what lies outside is
            not written.
        k_cache: [batch, num_kv_heads, places, width] uint8, contiguous.
        k_scale: [batch, num_kv_heads, places] bfloat16, contiguous.
        v_cache: likewise.
        v_scale: likewise.
        format: "int8", "fp8" or "tq4"; see ``formats.py``.

    Returns:
        The four caches as they are then.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_store(k, v, positions, k_cache, k_scale, v_cache, v_scale, format)
    if needs_reference(k):
        return store_reference(k, v, positions, k_cache, k_scale, v_cache, v_scale, format)
    made = k_cache.clone(), k_scale.clone(), v_cache.clone(), v_scale.clone()
    launch.store(k, v, positions, *made, format)
    return made


@triton_op("etcuda::quantized_attention", mutates_args=())
def quantized_attention(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    mask: Tensor | None,
    kv_len: Tensor | None,
    positions: Tensor | None,
    sinks: Tensor | None,
    format: str,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    ring: bool = False,
    block_m: int = 16,
    block_n: int = 32,
    num_warps: int = 4,
    num_stages: int = 2,
    num_splits: int = 1,
    one_loop: int = 0,
    section: int = 0,
) -> Tensor:
    """Softmax attention over a coded cache; a row that attends to no key gives zeros.

    Args:
        q: [batch, num_heads, L_q, head_dim] bfloat16, float16 or float32, any strides.
        k: codes [batch, num_kv_heads, L_kv, width] uint8, contiguous.
        k_scale: [batch, num_kv_heads, L_kv] bfloat16, contiguous.
        v: likewise.
        v_scale: likewise.
        mask: broadcastable to [batch, num_heads, L_q, L_kv], bool (true attends) or floating.
        kv_len: [batch] integers; keys from there on do not exist.
        positions: of the rows, [L_q] or [batch, L_q] integers; a row then sees keys up to its own position alone.
        sinks: [num_heads], a logit of each head that takes part in the sum of the weights and has no value.
        format: of the cache.
        scale: factor on the logits.
        window: keys that a row sees, if there are positions; 0 for all.
        softcap: logits become ``softcap * tanh(logits / softcap)``; 0 for none.
        ring: the key at position ``n`` is in slot ``n % L_kv``; with positions and a window of at most
            ``L_kv - L_q + 1`` keys.
        block_m: this and the rest as of ``QuantizedConfig``; a pass chooses them for the GPU of an export.

    Returns:
        [batch, num_heads, L_q, head_dim] in the dtype of ``q``, in memory [batch, L_q, num_heads, head_dim].

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    check_attention(
        q, k, k_scale, v, v_scale, mask, kv_len, positions, sinks, format, scale, window, softcap, ring
    )  # fmt: skip
    if needs_reference(q):
        made = empty_like_result(q)
        return made.copy_(
            quantized_attention_reference(
                q, k, k_scale, v, v_scale, mask, kv_len, positions, sinks, format, scale, window, softcap, ring
            )
        )
    call = launch.QuantizedCall(
        k, k_scale, v, v_scale, mask, kv_len, positions, sinks, format, scale, window, softcap, ring
    )
    config = QuantizedConfig(block_m, block_n, num_warps, num_stages, num_splits, one_loop, section)
    return launch.attention(q, call, config)


def fake_store(
    k: Tensor, v: Tensor, positions: Tensor, k_cache: Tensor, k_scale: Tensor, v_cache: Tensor, v_scale: Tensor,
    format: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Checks the arguments; returns fake results."""
    check_store(k, v, positions, k_cache, k_scale, v_cache, v_scale, format)
    return k_cache.clone(), k_scale.clone(), v_cache.clone(), v_scale.clone()


def fake_attention(
    q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor, v_scale: Tensor, mask: Tensor | None, kv_len: Tensor | None,
    positions: Tensor | None, sinks: Tensor | None, format: str, scale: float, window: int = 0, softcap: float = 0.0,
    ring: bool = False, block_m: int = 16, block_n: int = 32, num_warps: int = 4, num_stages: int = 2,
    num_splits: int = 1, one_loop: int = 0, section: int = 0,
) -> Tensor:  # fmt: skip
    """Checks the arguments; returns a fake result."""
    check_attention(
        q, k, k_scale, v, v_scale, mask, kv_len, positions, sinks, format, scale, window, softcap, ring
    )  # fmt: skip
    return empty_like_result(q)


quantized_cache_store.register_fake(fake_store)
quantized_attention.register_fake(fake_attention)
