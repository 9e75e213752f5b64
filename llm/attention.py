"""What transformers' models call for attention and for masks, registered as the implementation ``"etcuda"``.

Masks are computed from the positions of the queries and of the cached keys. Those of a cache that begins at position 0
are ``key <= position`` and, with a window, ``key > position - window``, which the passes recognise: no mask is read.
Attention over a ring, with a soft cap or with sinks, is ``etcuda.attention``, which takes them as arguments.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import etcuda.kernels  # noqa: F401  registers etcuda.attention
from etcuda.errors import CheckpointError

IMPLEMENTATION = "etcuda"
# What changes the result and is not computed here.
_NOT_SERVED = ("position_bias", "alibi", "head_mask", "attention_bias")
MaskFunction = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class RingKeys:
    """Where the keys of a ring stand, for masks.

    Attributes:
        positions: of each slot's key, [slots] integers, negative where there is none.
        window: keys that a query sees if nothing else decides that; ``None`` if something may.
    """

    positions: Tensor
    window: int | None


@dataclasses.dataclass(frozen=True)
class OrderedKeys:
    """Where the keys of a cache stand, for masks that positions say: slot ``n`` has the key at position ``n``.

    Attributes:
        window: keys that a query sees; 0 for all up to its own.
    """

    window: int


@dataclasses.dataclass(frozen=True)
class CodedKeys:
    """A cache in 8 or 4 bits, as ``attention`` finds it by its codes.

    Attributes:
        codes: [1, num_kv_heads, slots, width] uint8; kept, so that no other tensor has its id.
        scale: [1, num_kv_heads, slots] bfloat16.
        format: of both.
    """

    codes: Tensor
    scale: Tensor
    format: str


@dataclasses.dataclass
class Calls:
    """What a model called: the modules that called ``attention``, and the functions that masks were made of."""

    modules: list[Any] = dataclasses.field(default_factory=list)
    mask_functions: list[MaskFunction] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a mask says: queries at ``positions`` see ``window`` keys, 0 for all. ``mask`` is kept, so that no other
    tensor has its id."""

    mask: Tensor
    positions: Tensor
    window: int
    is_ring: bool


_calls: contextvars.ContextVar[Calls | None] = contextvars.ContextVar("calls", default=None)
_seen: contextvars.ContextVar[dict[int, _Seen] | None] = contextvars.ContextVar("seen", default=None)
_coded: contextvars.ContextVar[dict[int, CodedKeys] | None] = contextvars.ContextVar("coded", default=None)


@contextlib.contextmanager
def watching() -> Iterator[Calls]:
    """Notes what a model calls while it is entered."""
    calls = Calls()
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


@contextlib.contextmanager
def knowing_caches() -> Iterator[None]:
    """One call of a model: what ``mask`` makes for a ring, ``attention`` knows, and does not read; likewise scales."""
    tokens = _seen.set({}), _coded.set({})
    try:
        yield
    finally:
        _seen.reset(tokens[0])
        _coded.reset(tokens[1])


def note_coded(keys: CodedKeys) -> None:
    """Tells ``attention`` of codes that it will be given as keys or values. Within ``knowing_caches``."""
    known = _coded.get()
    assert known is not None
    known[id(keys.codes)] = keys


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention over the cache, as ``AttentionInterface`` calls it.

    Args:
        module: the calling attention module.
        query: [batch, num_heads, L, head_dim].
        key: [batch, num_kv_heads, length of the cache, head_dim].
        value: like ``key``.
        attention_mask: [1, 1, L, length of the cache] bool.
        scaling: factor on the logits; ``None`` is ``head_dim ** -0.5``.
        softcap: logits become ``softcap * tanh(logits / softcap)``; ``None`` for none.
        s_aux: sinks [num_heads], logits that take part in the sum of the weights and have no value.
        more: what models pass beside that; what changes the result is refused.

    Returns:
        [batch, L, num_heads, head_dim], and no weights.

    Raises:
        CheckpointError: the model has a bias of positions or the like.
    """
    refused = [name for name in _NOT_SERVED if more.get(name) is not None]
    if refused:
        raise CheckpointError(
            f"{type(module).__name__}: expected attention of queries, keys, values and a mask alone, got "
            f"{', '.join(refused)} too. This architecture cannot be exported yet."
        )
    calls = _calls.get()
    if calls is not None:
        calls.modules.append(module)
    known = _seen.get()
    seen = None if known is None else known.get(id(attention_mask))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    masking = (attention_mask, None) if seen is None else (None, seen.positions)
    window, is_ring = (0, False) if seen is None else (seen.window, seen.is_ring)
    if key.dtype == torch.uint8:
        keys, values = (_coded_of(module, each) for each in (key, value))
        out = torch.ops.etcuda.quantized_attention(
            query, keys.codes, keys.scale, values.codes, values.scale, masking[0], None, masking[1], s_aux,
            keys.format, scale, window, softcap or 0.0, is_ring,
        )  # fmt: skip
    elif seen is not None or softcap or s_aux is not None:
        out = torch.ops.etcuda.attention(query, key, value, *masking, s_aux, scale, window, softcap or 0.0, is_ring)
    else:
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=grouped
        )
    return out.transpose(1, 2).contiguous(), None


def _coded_of(module: Any, codes: Tensor) -> CodedKeys:
    known = _coded.get()
    found = None if known is None else known.get(id(codes))
    if found is None:
        raise CheckpointError(
            f"{type(module).__name__}: expected attention over the cache as it is, got keys or values that the model "
            "changes after they are cached. Export this architecture with --cache auto."
        )
    return found


def mask(
    *,
    q_offset: Tensor,
    kv_length: int,
    kv_offset: RingKeys | OrderedKeys | int,
    mask_function: MaskFunction,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Which keys each query sees, as ``AttentionMaskInterface`` calls it.

    Args:
        q_offset: positions of the queries, [L] integers: what our cache says that queries start at.
        kv_length: slots of the cache.
        kv_offset: 0, or where the keys stand.
        mask_function: of (batch, head, query's position, key's position).
        attention_mask: refused; prompts are not padded.

    Returns:
        [1, 1, L, kv_length] bool.
    """
    if attention_mask is not None:
        raise CheckpointError("mask: expected prompts without padding, got a padding mask. Leave it out.")
    calls, known = _calls.get(), _seen.get()
    if calls is not None:
        calls.mask_functions.append(mask_function)
    queries = q_offset.unsqueeze(1)
    if not isinstance(kv_offset, RingKeys):
        made = mask_function(0, 0, queries, torch.arange(kv_length, device=queries.device))[None, None]
        if known is not None and isinstance(kv_offset, OrderedKeys):
            known[id(made)] = _Seen(made, q_offset, kv_offset.window, is_ring=False)
        return made
    keys = kv_offset.positions
    seen = (mask_function(0, 0, queries, keys.unsqueeze(0)) & (keys >= 0))[None, None]
    if known is not None and kv_offset.window is not None:
        known[id(seen)] = _Seen(seen, q_offset, kv_offset.window, is_ring=True)
    return seen


def says_window(function: MaskFunction, windows: Iterable[int]) -> bool:
    """Whether a mask lets each query see all keys up to its own, or the last of them, as many as one of ``windows``.

    It is asked for the rows at which masks of windows, and of blocks as long as those, begin and end.
    """
    for window in (None, *windows):
        length = 4 * (window or 16)
        edges = {part * (window or 16) + step for part in range(4) for step in (-1, 0, 1)}
        rows = torch.tensor(sorted(row for row in edges if 0 <= row < length)).unsqueeze(1)
        keys = torch.arange(length).unsqueeze(0)
        expected = keys <= rows
        if window is not None:
            expected = expected & (keys > rows - window)
        if torch.equal(function(0, 0, rows, keys).expand_as(expected), expected):
            return True
    return False


def register() -> None:
    """Makes ``attn_implementation="etcuda"`` known to transformers. Idempotent."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, mask)
