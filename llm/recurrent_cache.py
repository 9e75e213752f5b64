"""The state of recurrent layers, beside KV caches: the last inputs of a convolution, and a matrix for each head.

A recurrent state is of its last token alone. A sequence goes on from there, or begins again: at position 0 the
operators take any state for an empty one, so that nothing need be cleared. To be taken back by some tokens, a sequence
needs the states behind earlier ones: a ring of ``slots``, written token by token, and a longer ring of the inputs of a
convolution. A call of ``prefill`` writes the state behind its last token alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin


@dataclasses.dataclass(frozen=True)
class RecurrentLayer:
    """What one layer keeps.

    Attributes:
        layer: its number in the model.
        channels: of its convolution; 0 for none.
        width: of the convolution's filter.
        state: sizes of a sequence's state, [heads, ...]; empty for none.
        slots: states that are kept, of the last tokens.
    """

    layer: int
    channels: int = 0
    width: int = 0
    state: tuple[int, ...] = ()
    slots: int = 1

    @property
    def rows(self) -> int:
        """Inputs of the convolution that are kept: a sequence that is taken back finds those in front of it."""
        return self.width + self.slots - 1

    def nbytes(self, itemsize: int, state_itemsize: int = 4) -> int:
        """Bytes of a session's state: of inputs with ``itemsize`` bytes, and of states with ``state_itemsize``."""
        matrices = self.slots * math.prod(self.state) if self.state else 0
        return self.channels * self.rows * itemsize + matrices * state_itemsize

    def traffic(self, itemsize: int) -> int:
        """Bytes that a token reads and writes: one state, and the inputs under a filter."""
        return 2 * dataclasses.replace(self, slots=1).nbytes(itemsize)


@dataclasses.dataclass(frozen=True)
class Pending:
    """Inputs of a convolution [batch, channels, L] on their way from the cache to what computes it."""

    x: Tensor
    layer: RecurrentCacheLayer


class RecurrentState(nn.Module):
    """The states of all recurrent layers: buffers ``conv_0`` [1, rows, channels] and ``state_0`` [1, heads, ...], or
    [1, slots, heads, ...] where several are kept.

    Args:
        layers: that keep a state.
        dtype: of the inputs of convolutions. States are fp32, as transformers keeps them.
    """

    def __init__(self, layers: list[RecurrentLayer], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = layers
        for each in layers:
            if each.channels:
                held = torch.zeros(1, each.rows, each.channels, dtype=dtype)
                self.register_buffer(f"conv_{each.layer}", held)
            if each.state:
                slots = (each.slots,) if each.slots > 1 else ()
                self.register_buffer(f"state_{each.layer}", torch.zeros(1, *slots, *each.state))

    def view(self, positions: Tensor) -> dict[int, RecurrentCacheLayer]:
        """Each layer's state, for one call whose tokens stand at ``positions`` [L], consecutive."""
        return {
            each.layer: RecurrentCacheLayer(
                getattr(self, f"conv_{each.layer}", None), getattr(self, f"state_{each.layer}", None), positions
            )
            for each in self.layers
        }


class RecurrentCacheLayer(LinearAttentionCacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, for one call. What transformers calls a state is this object, on its way from a model's
    code to the functions of ``etcuda.llm.recurrent``."""

    def __init__(self, conv: Tensor | None, state: Tensor | None, positions: Tensor) -> None:
        super().__init__()
        self.conv, self.state, self.positions = conv, state, positions

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Nothing: the buffers exist."""

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **_: Any) -> Pending:
        """The inputs, with the state that they are convolved with."""
        return Pending(conv_states, self)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        """Keeps what a function of ``etcuda.llm.recurrent`` made of ``state``."""
        assert self.state is not None
        self.state.copy_(recurrent_states)
        return self.state


class Both(CacheLayerMixin):  # type: ignore[misc]
    """A layer with a KV cache and a recurrent state, for one call."""

    is_compileable = True

    def __init__(self, attention: Any, recurrent: RecurrentCacheLayer) -> None:
        super().__init__()
        self.attention, self.recurrent = attention, recurrent
        self.is_sliding, self.is_initialized = attention.is_sliding, True

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Nothing: the buffers exist."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes keys and values; returns the whole cache."""
        found: tuple[Tensor, Tensor] = self.attention.update(key_states, value_states)
        return found

    def get_mask_sizes(self, query_length: int) -> tuple[int, Any]:
        """Of the KV cache."""
        found: tuple[int, Any] = self.attention.get_mask_sizes(query_length)
        return found

    def get_seq_length(self) -> Any:
        """Tokens before this call."""
        return self.attention.get_seq_length()

    def get_max_length(self) -> int:
        """Number of slots."""
        return int(self.attention.get_max_length())


def recurrent_of(layer: Any) -> RecurrentCacheLayer | None:
    """The recurrent state of a cache's layer, if it has one."""
    found = getattr(layer, "recurrent", layer)
    return found if isinstance(found, RecurrentCacheLayer) else None
