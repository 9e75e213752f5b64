"""Language models over caches in 8 and 4 bits, in PyTorch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from etcuda.errors import CheckpointError
from etcuda.kernels.quantized_cache.codes import decode, encode
from etcuda.kernels.quantized_cache.rotation import unrotate
from etcuda.llm.cache import KVState, LayerCache, _StateLayer, with_format
from etcuda.llm.model import TextModel, empty_model, fill_buffers, find_layers
from tests.llm.architectures import prompt, reference
from tests.llm.dequantised import state_for
from tests.llm.test_model import run

_LAYER = LayerCache(0, 2, 16, 16, None, 64, False)


def coded_model(name: str, cache: str) -> tuple[TextModel, object]:
    whole = reference(name)
    model = empty_model(whole.config, torch.float32)
    layers = find_layers(model, 64, 8, cache)
    fill_buffers(model)
    model.load_state_dict(state_for(model, whole), assign=True)
    model.tie_weights()
    return TextModel(model, layers).eval(), whole


@pytest.mark.parametrize(
    ("name", "cache"),
    [("llama", "int8"), ("qwen3", "tq4"), ("gemma2", "fp8"), ("gpt_oss", "int8"), ("gemma4_text shared", "fp8")],
)
def test_it_attends_to_what_the_codes_stand_for(name: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the wrap of rings, in chunks and token by token, with soft caps, sinks, and masks of blocks; against the
    same model that codes and decodes keys and values itself."""
    tokens = prompt(60, seed=1)
    model, _ = coded_model(name, cache)
    exact, _ = coded_model(name, "auto")
    plain = _StateLayer.update

    def update(self: _StateLayer, key: Tensor, value: Tensor, *more: object, **named: object) -> tuple[Tensor, Tensor]:
        key, value = (decode(*encode(each, cache), cache) for each in (key, value))
        if cache == "tq4":
            key, value = unrotate(key), unrotate(value)
        return plain(self, key, value, *more, **named)

    for sizes in ([8] * 7 + [4], [1] * 9 + [8, 3, 8] * 2 + [8, 5]):
        model.reset()
        exact.reset()
        logits = run(model, tokens, sizes)
        unlike = run(exact, tokens, sizes)
        exact.reset()
        with monkeypatch.context() as patch:
            patch.setattr(_StateLayer, "update", update)
            expected = run(exact, tokens, sizes)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(unlike, expected, rtol=1e-3, atol=1e-3)


def test_bytes_of_a_cache() -> None:
    wide = dataclasses.replace(_LAYER, head_dim=128, value_dim=128)
    for cache, nbytes in (("auto", 512), ("int8", 260), ("fp8", 260), ("tq4", 132)):
        layer = with_format(wide, cache, torch.bfloat16)
        assert layer.nbytes(2) == 64 * 2 * nbytes
        state = KVState([layer], torch.bfloat16)
        assert sum(buffer.nbytes for buffer in state.buffers()) == layer.nbytes(2)


@pytest.mark.parametrize(
    ("cache", "changes", "dtype", "message"),
    [
        ("int3", {}, torch.float32, "cache: expected one of auto, bf16, int8, fp8, tq4, got 'int3'"),
        ("bf16", {}, torch.float32, "cache: expected bf16 for a model in bfloat16, got one in float32"),
        ("tq4", {}, torch.float32, "layer 0, where tq4 takes a head_dim that is a power of two from 32 on, got 16"),
        ("tq4", {"head_dim": 80}, torch.float32, "power of two from 32 on, got 80"),
        ("int8", {"value_dim": 32}, torch.float32, "keys and values are of one width, got 16 and 32"),
    ],
)
def test_what_cannot_be_kept_so(cache: str, changes: dict[str, int], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        with_format(dataclasses.replace(_LAYER, **changes), cache, dtype)
