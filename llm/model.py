"""A causal language model of transformers without its weights, and the module that is exported."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, StaticCache
from transformers.cache_utils import Cache, CacheLayerMixin

from etcuda.errors import CheckpointError
from etcuda.llm import attention, experts
from etcuda.llm.cache import KVState, LayerCache, slots

# Longer than any window, so that a window is seen as one.
_LONG = 1 << 40
# Of transformers' static caches, those whose keys and values we keep; a dummy keeps nothing.
_KINDS = ("StaticLayer", "StaticSlidingWindowLayer", "DummyLayer")


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """The model of a configuration on the meta device, in ``dtype``, in evaluation mode.

    Raises:
        CheckpointError: transformers has no causal language model for it, or cannot build one.
    """
    attention.register()
    experts.register()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, attn_implementation=attention.IMPLEMENTATION,
                experts_implementation=experts.IMPLEMENTATION,
            )  # fmt: skip
    except KeyError as error:
        raise CheckpointError(
            f"model_type {config.model_type!r}: expected attention through transformers' interface, got code of its "
            f"own, which knows no implementation {error}. This architecture cannot be exported."
        ) from error
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(
            f"model_type {config.model_type!r}: expected a configuration that transformers builds a causal language "
            f"model of, got: {error} Correct config.json, or name a decoder-only model."
        ) from error
    model.eval().requires_grad_(False)
    return model


def fill_buffers(model: nn.Module) -> None:
    """Computes the buffers that no checkpoint has, such as the frequencies of rotary positions. Call it while all
    parameters are on the meta device: transformers' initialisation then touches the buffers alone."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
        module._is_hf_initialized = False  # type: ignore[assignment]
    model.initialize_weights()  # type: ignore[operator]


def find_layers(model: Any, max_seq_len: int, chunk: int) -> list[LayerCache]:
    """The caches that a model on the meta device needs: it is run once, and what it writes is looked at.

    Raises:
        CheckpointError: a layer keeps something other than keys and values.
    """
    static = StaticCache(config=model.config, max_cache_len=_LONG)
    for number, layer in enumerate(static.layers):
        if type(layer).__name__ not in _KINDS:
            raise CheckpointError(
                f"layer {number}: expected attention over all keys or over a window, got a {type(layer).__name__} of "
                "transformers. This architecture cannot be exported yet."
            )
    recorder = _Recorder(len(static.layers))
    one = torch.zeros(1, 1, dtype=torch.long, device="meta")
    with torch.no_grad(), attention.watching() as calls:
        try:
            _call(model, one, recorder.positions, recorder)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{type(model).__name__}: expected a model that runs over a cache of ours, got: "
                f"{type(error).__name__}: {error}. This architecture cannot be exported yet."
            ) from error
    with_state = sum(shapes is not None for shapes in recorder.shapes)
    if with_state == 0 or len(calls.modules) < with_state:
        raise CheckpointError(
            f"{type(model).__name__}: expected a call of transformers' attention interface by each of {with_state} "
            f"layers that keep keys, got {len(calls.modules)} calls. Its attention is code of its own, and cannot be "
            "exported."
        )
    windows = {layer.max_cache_len for layer in static.layers if _is_sliding(layer)}
    reads_mask = not all(attention.says_window(function, windows) for function in calls.mask_functions)
    layers = []
    for number, (layer, shapes) in enumerate(zip(static.layers, recorder.shapes, strict=True)):
        if shapes is None:
            continue
        (_, num_kv_heads, _, head_dim), (_, _, _, value_dim) = shapes
        window = layer.max_cache_len if _is_sliding(layer) else None
        length, is_ring = slots(window, max_seq_len, chunk)
        layers.append(LayerCache(number, num_kv_heads, head_dim, value_dim, window, length, is_ring, reads_mask))
    return layers


def _is_sliding(layer: Any) -> bool:
    # Layers that read another one's keys have no word on it.
    return bool(getattr(layer, "is_sliding", False))


class TextModel(nn.Module):
    """A causal language model over its caches.

    Args:
        model: of ``empty_model``, with weights.
        layers: of ``find_layers``.
        all_logits: logits of every token; otherwise of the last one.
    """

    def __init__(self, model: Any, layers: list[LayerCache], all_logits: bool = False) -> None:
        super().__init__()
        self.model = model
        self.cache = KVState(layers, model.dtype)
        self.num_layers = len(StaticCache(config=model.config, max_cache_len=_LONG).layers)
        self._all_logits = all_logits

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Appends tokens to the caches and predicts what follows.

        Args:
            tokens: [1, L] int64.
            positions: [L] int64, of the tokens in the sequence; consecutive.

        Returns:
            logits [1, vocab_size] of the last token, or [1, L, vocab_size] of all, in the model's dtype.
        """
        self.cache.note(tokens, positions)
        cache = self.cache.view(positions, self.num_layers)
        with attention.knowing_rings():
            logits = _call(self.model, tokens, positions, cache, 0 if self._all_logits else 1)
        return logits if self._all_logits else logits[:, -1]

    def reset(self) -> None:
        """Empties the caches."""
        self.cache.reset()


def _call(model: Any, tokens: Tensor, positions: Tensor, cache: Cache, logits_to_keep: int = 1) -> Tensor:
    out = model(
        input_ids=tokens, position_ids=positions.unsqueeze(0), cache=cache, use_cache=True,
        logits_to_keep=logits_to_keep,
    )  # fmt: skip
    logits: Tensor = out.logits
    return logits


class _RecorderLayer(CacheLayerMixin):  # type: ignore[misc]
    is_sliding = False

    def __init__(self, recorder: _Recorder, number: int) -> None:
        super().__init__()
        self._recorder, self._number = recorder, number

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._recorder.shapes[self._number] = (tuple(key_states.shape), tuple(value_states.shape))
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class _Recorder(Cache):  # type: ignore[misc]
    """Notes the shapes that each layer writes."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_RecorderLayer(self, number) for number in range(num_layers)])
        self.positions = torch.zeros(1, dtype=torch.long, device="meta")
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]] | None] = [None] * num_layers

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:
        return self.positions
