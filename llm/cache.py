"""KV caches as registered state: what each layer keeps, the module that holds it, and transformers' view of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from etcuda.errors import CheckpointError
from etcuda.kernels.quantized_cache.formats import CODE_DTYPE, FORMATS, SCALE_DTYPE
from etcuda.llm.attention import CodedKeys, OrderedKeys, RingKeys, note_coded
from etcuda.llm.recurrent_cache import Both, RecurrentLayer, RecurrentState, recurrent_of

# How caches are kept: like activations, in bfloat16 (which activations must have), or coded.
CACHE_FORMATS = ("auto", "bf16", *FORMATS)


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """The cache of one layer.

    Attributes:
        layer: its number in the model.
        num_kv_heads: heads of keys and values.
        head_dim: width of a key.
        value_dim: width of a value.
        window: keys that a query sees, its own included; ``None`` for all.
        length: slots.
        is_ring: whether position ``p`` is kept in slot ``p % length``; otherwise in slot ``p``.
        reads_mask: whether more than positions and the window decides which keys of a ring a query sees.
        format: a name of ``FORMATS`` for a coded cache; "" for one in the model's dtype.
    """

    layer: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    length: int
    is_ring: bool
    reads_mask: bool = False
    format: str = ""

    def slot_bytes(self, itemsize: int) -> int:
        """Bytes of the keys and values of a token, whose numbers have ``itemsize`` bytes if they are not coded."""
        widths = (self.head_dim, self.value_dim)
        if self.format:
            return self.num_kv_heads * sum(FORMATS[self.format].vector_bytes(width) for width in widths)
        return self.num_kv_heads * sum(widths) * itemsize

    def nbytes(self, itemsize: int) -> int:
        """Bytes of all slots."""
        return self.length * self.slot_bytes(itemsize)


def slots(window: int | None, max_seq_len: int, chunk: int) -> tuple[int, bool]:
    """Slots that a layer needs, and whether they are a ring.

    A chunk is written before it is read, so a ring holds the window of its first token and the chunk behind that:
    ``window + chunk - 1`` keys.
    """
    if window is None or window + chunk - 1 >= max_seq_len:
        return max_seq_len, False
    return window + chunk - 1, True


def with_format(layer: LayerCache, cache: str, dtype: torch.dtype) -> LayerCache:
    """The layer's cache kept as one of ``CACHE_FORMATS``.

    Raises:
        CheckpointError: there is no such format, or the layer's keys and values cannot be kept so.
    """
    if cache not in CACHE_FORMATS:
        raise CheckpointError(f"cache: expected one of {', '.join(CACHE_FORMATS)}, got {cache!r}.")
    if cache == "bf16" and dtype != torch.bfloat16:
        raise CheckpointError(
            f"cache: expected bf16 for a model in bfloat16, got one in {str(dtype).removeprefix('torch.')}. Pass "
            "--cache auto for a cache in the model's dtype, or --dtype bf16."
        )
    if cache not in FORMATS:
        return layer
    reason = FORMATS[cache].refuse(layer.head_dim)
    if reason is None and layer.value_dim != layer.head_dim:
        reason = f"keys and values are of one width, got {layer.head_dim} and {layer.value_dim}"
    if reason is not None:
        raise CheckpointError(
            f"cache: expected heads that {cache} takes, got layer {layer.layer}, where {reason}. Pass --cache auto."
        )
    return dataclasses.replace(layer, format=cache)


class KVState(nn.Module):
    """The caches of all layers: buffers ``k_0``, ``v_0``, ..., [1, num_kv_heads, length, head_dim], and ``history``.

    Coded ones have codes [1, num_kv_heads, length, width], and ``k_scale_0``, ... [1, num_kv_heads, length].

    Args:
        layers: of those layers that keep keys and values of their own.
        dtype: of keys and values.
        recurrent: of layers that keep a recurrent state; its buffers are in ``recurrent``.
    """

    def __init__(
        self, layers: list[LayerCache], dtype: torch.dtype, recurrent: list[RecurrentLayer] | None = None
    ) -> None:
        super().__init__()
        self.recurrent = RecurrentState(recurrent or [], dtype)
        self.layers = layers
        self.history: Tensor | None
        self.register_buffer("history", None)
        for each in layers:
            shape = (1, each.num_kv_heads, each.length)
            kind = CODE_DTYPE if each.format else dtype
            for name, width in (("k", each.head_dim), ("v", each.value_dim)):
                stored = FORMATS[each.format].width(width) if each.format else width
                self.register_buffer(f"{name}_{each.layer}", torch.zeros(*shape, stored, dtype=kind))
                if each.format:
                    scale = torch.zeros(shape, dtype=SCALE_DTYPE)
                    self.register_buffer(f"{name}_scale_{each.layer}", scale)

    def reset(self) -> None:
        """Empties the caches."""
        for buffer in self.buffers():
            buffer.zero_()

    def keep_history(self, max_seq_len: int) -> None:
        """Adds the buffer ``history`` [max_seq_len] int64, the token at each position. What was written behind a
        sequence's end, before it was taken back, means nothing, as with keys and values."""
        self.register_buffer("history", torch.zeros(max_seq_len, dtype=torch.long))

    def note(self, tokens: Tensor, positions: Tensor) -> None:
        """Writes tokens [1, L] to the history, if there is one."""
        if self.history is not None:
            self.history.index_copy_(0, positions, tokens[0])

    def view(self, positions: Tensor, num_layers: int) -> StateCache:
        """The ``Cache`` for one call, whose tokens stand at ``positions`` [L] int64, consecutive."""
        shared: dict[int, tuple[Tensor, RingKeys]] = {}
        layers: list[Any] = [_NoState() for _ in range(num_layers)]
        for each in self.layers:
            ring = None
            where = positions
            if each.is_ring:
                if each.length not in shared:
                    shared[each.length] = _ring(positions, each)
                where, ring = shared[each.length]
            keys, values = getattr(self, f"k_{each.layer}"), getattr(self, f"v_{each.layer}")
            kept = _StateLayer(keys, values, positions, where, ring, each.window is not None)
            if each.format:
                scales = getattr(self, f"k_scale_{each.layer}"), getattr(self, f"v_scale_{each.layer}")
                kept = _CodedLayer(kept, *scales, each)
            layers[each.layer] = kept
        for number, state in self.recurrent.view(positions).items():
            attention = layers[number]
            layers[number] = state if isinstance(attention, _NoState) else Both(attention, state)
        return StateCache(layers, positions)


def _ring(positions: Tensor, layer: LayerCache) -> tuple[Tensor, RingKeys]:
    """Slots of ``positions``, and where each slot's key stands after they are written."""
    last = positions[-1]
    slot = torch.arange(layer.length, device=positions.device)
    keys = last - (last - slot) % layer.length
    return positions % layer.length, RingKeys(keys, None if layer.reads_mask else layer.window)


class _StateLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, for one call."""

    is_compileable = True

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        where: Tensor,
        ring: RingKeys | None,
        is_sliding: bool,
    ) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_sliding = is_sliding
        self.is_initialized = True
        self.positions, self.where, self.ring = positions, where, ring

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers exist."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes keys and values [1, num_kv_heads, L, head_dim] to their slots; returns the whole cache."""
        keys = self.keys.index_copy_(2, self.where, key_states)
        values = self.values.index_copy_(2, self.where, value_states)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, Any]:
        """Number of slots, and what our mask function takes as the offset of the keys."""
        return self.keys.shape[2], 0 if self.ring is None else self.ring

    def get_seq_length(self) -> Any:
        """Tokens before this call."""
        return self.positions[0]

    def get_max_length(self) -> int:
        """Number of slots."""
        return int(self.keys.shape[2])


class _CodedLayer(_StateLayer):
    """One layer's codes and scales, for one call."""

    def __init__(self, state: _StateLayer, k_scale: Tensor, v_scale: Tensor, layer: LayerCache) -> None:
        super().__init__(state.keys, state.values, state.positions, state.where, state.ring, state.is_sliding)
        self._k_scale, self._v_scale, self._layer = k_scale, v_scale, layer

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes keys and values [1, num_kv_heads, L, head_dim] to their slots; returns the codes of all slots, whose
        scales ``attention`` knows."""
        state = (self.keys, self._k_scale, self.values, self._v_scale)
        made = torch.ops.etcuda.quantized_cache_store(
            key_states, value_states, self.where, *state, self._layer.format
        )  # fmt: skip
        for buffer, value in zip(state, made, strict=True):
            buffer.copy_(value)
        for codes, scale in (made[:2], made[2:]):
            note_coded(CodedKeys(codes, scale, self._layer.format))
        return made[0], made[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, Any]:
        """Number of slots, and where keys stand, if positions and a window say which are seen."""
        if self.ring is not None or self._layer.reads_mask:
            return super().get_mask_sizes(query_length)
        return self.keys.shape[2], OrderedKeys(self._layer.window or 0)


class _NoState(CacheLayerMixin):  # type: ignore[misc]
    """A layer that keeps nothing: it attends to another layer's keys, or not at all."""

    is_compileable = True
    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Returns what it is given."""
        raise AssertionError("a layer wrote keys that it did not write when its cache was sized; please report it.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """No key."""
        return 0, 0

    def get_seq_length(self) -> int:
        """No token."""
        return 0

    def get_max_length(self) -> int:
        """No slot."""
        return 0


class StateCache(Cache):  # type: ignore[misc]
    """The caches of all layers, for one call."""

    def __init__(self, layers: list[Any], positions: Tensor) -> None:
        super().__init__(layers=layers)
        self._positions = positions

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:
        """Positions of the queries, [L]: what our mask function takes."""
        return self._positions

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None: models then call ``update_conv_state``, for one token too."""

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Any:
        """See ``RecurrentCacheLayer``."""
        return self._recurrent(layer_idx, state_idx).update_conv_state(conv_states)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Any:
        """See ``RecurrentCacheLayer``."""
        return self._recurrent(layer_idx, state_idx)

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        """Keeps a new state."""
        kept: Tensor = self._recurrent(layer_idx, state_idx).update_recurrent_state(recurrent_states)
        return kept

    def _recurrent(self, layer: int, index: int) -> Any:
        found = recurrent_of(self.layers[layer])
        assert found is not None, f"layer {layer} keeps no recurrent state; please report it."
        assert index == 0, f"layer {layer} keeps no recurrent state {index}; please report it."
        return found

    @property
    def is_dummy(self) -> list[bool]:
        """Which layers keep nothing."""
        return [isinstance(layer, _NoState) for layer in self.layers]
