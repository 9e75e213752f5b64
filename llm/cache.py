"""KV caches as registered state: what each layer keeps, the module that holds it, and transformers' view of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from etcuda.llm.attention import RingKeys


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
    """

    layer: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    length: int
    is_ring: bool
    reads_mask: bool = False

    def nbytes(self, itemsize: int) -> int:
        """Bytes of keys and values whose numbers have ``itemsize`` bytes."""
        return self.num_kv_heads * self.length * (self.head_dim + self.value_dim) * itemsize


def slots(window: int | None, max_seq_len: int, chunk: int) -> tuple[int, bool]:
    """Slots that a layer needs, and whether they are a ring.

    A chunk is written before it is read, so a ring holds the window of its first token and the chunk behind that:
    ``window + chunk - 1`` keys.
    """
    if window is None or window + chunk - 1 >= max_seq_len:
        return max_seq_len, False
    return window + chunk - 1, True


class KVState(nn.Module):
    """The caches of all layers: buffers ``k_0``, ``v_0``, ..., [1, num_kv_heads, length, head_dim], and ``history``.

    Args:
        layers: of those layers that keep keys and values of their own.
        dtype: of keys and values.
    """

    def __init__(self, layers: list[LayerCache], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = layers
        self.history: Tensor | None
        self.register_buffer("history", None)
        for each in layers:
            shape = (1, each.num_kv_heads, each.length)
            self.register_buffer(f"k_{each.layer}", torch.zeros(*shape, each.head_dim, dtype=dtype))
            self.register_buffer(f"v_{each.layer}", torch.zeros(*shape, each.value_dim, dtype=dtype))

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
            layers[each.layer] = _StateLayer(keys, values, positions, where, ring, each.window is not None)
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
        self._positions, self._where, self._ring = positions, where, ring

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers exist."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes keys and values [1, num_kv_heads, L, head_dim] to their slots; returns the whole cache."""
        keys = self.keys.index_copy_(2, self._where, key_states)
        values = self.values.index_copy_(2, self._where, value_states)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, Any]:
        """Number of slots, and what our mask function takes as the offset of the keys."""
        return self.keys.shape[2], 0 if self._ring is None else self._ring

    def get_seq_length(self) -> Any:
        """Tokens before this call."""
        return self._positions[0]

    def get_max_length(self) -> int:
        """Number of slots."""
        return int(self.keys.shape[2])


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

    @property
    def is_dummy(self) -> list[bool]:
        """Which layers keep nothing."""
        return [isinstance(layer, _NoState) for layer in self.layers]
