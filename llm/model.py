"""A causal language model of transformers without its weights, and the module that is exported."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, StaticCache
from transformers.cache_utils import Cache, CacheLayerMixin

from etcuda.errors import CheckpointError
from etcuda.llm import attention, experts, recurrent, routers
from etcuda.llm.cache import KVState, LayerCache, slots, with_format
from etcuda.llm.recurrent_cache import RecurrentLayer
from etcuda.llm.running_module import running_modules

# Longer than any window, so that a window is seen as one.
_LONG = 1 << 40
# Of transformers' static caches, those whose keys, values and states we keep; a dummy keeps nothing.
_RECURRENT = (
    "LinearAttentionLayer",
    "LinearAttentionAndStaticFullAttentionLayer",
    "LinearAttentionAndStaticSlidingWindowAttentionLayer",
)
_KINDS = ("StaticLayer", "StaticSlidingWindowLayer", "DummyLayer", *_RECURRENT)


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
        if attention.IMPLEMENTATION not in str(error):
            raise CheckpointError(
                f"model_type {config.model_type!r}: expected a configuration that transformers builds a causal "
                f"language model of, got one whose {error} it does not know. Correct config.json."
            ) from error
        raise CheckpointError(
            f"model_type {config.model_type!r}: expected attention through transformers' interface, got code of its "
            f"own, which knows no implementation {error}. This architecture cannot be exported."
        ) from error
    except (ValueError, TypeError, AttributeError, ImportError, ArithmeticError, RuntimeError) as error:
        # The lines behind the first list every model that transformers has.
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"model_type {config.model_type!r}: expected a configuration that transformers builds a causal language "
            f"model of, got: {said} Correct config.json, or name a decoder-only model."
        ) from error
    model.eval().requires_grad_(False)
    routers.replace_routers(model)
    experts.straighten(model)
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


def find_layers(model: Any, max_seq_len: int, chunk: int, cache: str = "auto") -> list[LayerCache]:
    """The caches that a model on the meta device needs: it is run once, and what it writes is looked at.

    Args:
        model: of ``empty_model``.
        max_seq_len: tokens that the caches hold.
        chunk: most tokens of one call.
        cache: how they are kept, one of ``CACHE_FORMATS``.

    Raises:
        CheckpointError: a layer keeps something other than keys and values, or what cannot be kept so.
    """
    static = StaticCache(config=model.config, max_cache_len=_LONG)
    for number, layer in enumerate(static.layers):
        if type(layer).__name__ not in _KINDS:
            raise CheckpointError(
                f"layer {number}: expected attention over all keys or over a window, got a {type(layer).__name__} of "
                "transformers. This architecture cannot be exported yet."
            )
    recorder, calls = _record(model, len(static.layers))
    with_state = sum(shapes is not None for shapes in recorder.shapes)
    if (with_state == 0 and not recorder.recurrent) or len(calls.modules) < with_state:
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
        made = LayerCache(number, num_kv_heads, head_dim, value_dim, window, length, is_ring, reads_mask)
        layers.append(with_format(made, cache, model.dtype))
    return layers


def find_recurrent(model: Any, slots: int = 1) -> list[RecurrentLayer]:
    """The recurrent states that a model needs, its weights anywhere: a model of its configuration is run once on the
    meta device.

    Args:
        model: of ``empty_model``.
        slots: states that are kept, of the last tokens.

    Raises:
        CheckpointError: a layer's recurrence is not one of those that operators of ours compute.
    """
    kinds = [type(layer).__name__ for layer in StaticCache(config=model.config, max_cache_len=_LONG).layers]
    if not any(kind in _RECURRENT for kind in kinds):
        return []
    recorder, _ = _record(empty_model(model.config, model.dtype), len(kinds))
    return [dataclasses.replace(recorder.recurrent[number], slots=slots) for number in sorted(recorder.recurrent)]


def _record(model: Any, num_layers: int) -> tuple[_Recorder, attention.Calls]:
    """Runs a model on the meta device, and notes what it writes and calls."""
    recorder = _Recorder(num_layers)
    one = torch.zeros(1, 1, dtype=torch.long, device="meta")
    with (
        torch.no_grad(),
        attention.watching() as calls,
        running_modules(model) as trail,
        recurrent.without_advice(),
    ):
        try:
            _call(model, one, recorder.positions, recorder)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{type(model).__name__}: expected a model that runs over a cache of ours, got, in "
                f"{(trail and trail[-1]) or 'the model itself'}: {type(error).__name__}: {error}. This "
                "architecture cannot be exported yet."
            ) from error
    for layer in recorder.recurrent.values():
        recurrent.check(model, layer)
    return recorder, calls


def _is_sliding(layer: Any) -> bool:
    # Layers that read another one's keys have no word on it.
    return bool(getattr(layer, "is_sliding", False))


class TextModel(nn.Module):
    """A causal language model over its caches.

    Args:
        model: of ``empty_model``, with weights.
        layers: of ``find_layers``.
        all_logits: logits of every token; otherwise of the last one.
        slots: states that recurrent layers keep, of the last tokens.
    """

    def __init__(self, model: Any, layers: list[LayerCache], all_logits: bool = False, slots: int = 1) -> None:
        super().__init__()
        self.model = model
        self.cache = KVState(layers, model.dtype, find_recurrent(model, slots))
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
        with attention.knowing_caches(), recurrent.routed(self.model):
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

        self.recurrent: dict[int, RecurrentLayer] = {}

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:
        return self.positions

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        pass

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        pass

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        if state_idx != 0 or conv_kernel_size is None:
            raise CheckpointError(
                f"layer {layer_idx}: expected one convolution that says its width, got state {state_idx} of width "
                f"{conv_kernel_size}. This architecture cannot be exported yet."
            )
        self._note(layer_idx, channels=int(conv_states.shape[1]), width=conv_kernel_size)
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        if state_idx != 0:
            raise CheckpointError(
                f"layer {layer_idx}: expected one recurrent state, got state {state_idx}. This architecture cannot be "
                "exported yet."
            )
        self._note(layer_idx, state=tuple(recurrent_states.shape[1:]))
        return recurrent_states

    def _note(self, layer: int, **found: Any) -> None:
        before = self.recurrent.get(layer, RecurrentLayer(layer))
        self.recurrent[layer] = dataclasses.replace(before, **found)
