"""The module that is exported, in PyTorch: equal to transformers' own generation, for every named architecture."""

from __future__ import annotations

import pytest
import torch

from etcuda.errors import CheckpointError
from etcuda.llm.attention import attention, mask
from etcuda.llm.model import TextModel, empty_model, fill_buffers, find_layers
from tests.llm.architectures import CONFIGS, EXPERTS, OTHERS, VOCAB, WINDOW, greedy, prompt, reference
from tests.llm.dequantised import state_for

_LENGTH, _CHUNK = 64, 8


def text_model(name: str, chunk: int = _CHUNK, slots: int = 1) -> tuple[TextModel, object]:
    whole = reference(name)
    model = empty_model(whole.config, torch.float32)
    layers = find_layers(model, _LENGTH, chunk)
    fill_buffers(model)
    model.load_state_dict(state_for(model, whole), assign=True)
    model.tie_weights()
    return TextModel(model, layers, slots=slots).eval(), whole


def run(model: TextModel, tokens: list[int], sizes: list[int]) -> torch.Tensor:
    """Logits of the last token after chunks of these sizes."""
    start, logits = 0, torch.empty(0)
    with torch.no_grad():
        for size in sizes:
            some = torch.tensor([tokens[start : start + size]])
            logits = model(some, torch.arange(start, start + size))
            start += size
    assert start == len(tokens)
    return logits


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS, *EXPERTS])
def test_greedy_tokens_are_those_of_transformers(name: str) -> None:
    model, whole = text_model(name)
    tokens = prompt(20)
    expected = greedy(whole, tokens, 30)
    logits = run(model, tokens, [8, 8, 4])
    got: list[int] = []
    while len(got) < 30:
        got.append(int(logits.argmax()))
        with torch.no_grad():
            logits = model(torch.tensor([got[-1:]]), torch.tensor([len(tokens) + len(got) - 1]))
    assert len(set(expected)) > 3, "the model says too little to compare"
    assert got == expected


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma4_text", "gpt_oss"])
def test_any_chunks_agree_past_the_wrap(name: str) -> None:
    tokens = prompt(60, seed=1)
    model, whole = text_model(name)
    with torch.no_grad():
        expected = whole(torch.tensor([tokens])).logits[0, -1:]
    for sizes in ([8] * 7 + [4], [1] * 60, [3, 8, 1, 1, 7] * 3):
        model.reset()
        torch.testing.assert_close(run(model, tokens, sizes), expected, rtol=1e-4, atol=1e-4)


def test_sliding_layers_are_rings() -> None:
    model, _ = text_model("gemma3_text")
    sliding, full = model.cache.layers
    assert (sliding.length, sliding.is_ring, sliding.window) == (WINDOW + _CHUNK - 1, True, WINDOW)
    assert (full.length, full.is_ring, full.window) == (_LENGTH, False, None)


def test_layers_that_share_keys_keep_none() -> None:
    model, _ = text_model("gemma4_text shared")
    assert [each.layer for each in model.cache.layers] == [0, 1]


def test_a_ring_that_would_be_longer_than_the_sequence_is_none() -> None:
    model, _ = text_model("mistral", chunk=_LENGTH)
    assert [(each.length, each.is_ring) for each in model.cache.layers] == [(_LENGTH, False)] * 2


def test_all_logits() -> None:
    model, whole = text_model("qwen3")
    every = TextModel(model.model, model.cache.layers, all_logits=True).eval()
    tokens = torch.tensor([prompt(8)])
    with torch.no_grad():
        torch.testing.assert_close(every(tokens, torch.arange(8)), whole(tokens).logits, rtol=1e-4, atol=1e-4)
    assert every(tokens, torch.arange(8)).shape == (1, 8, VOCAB)


def test_a_layer_that_keeps_something_else_is_refused() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "qwen3", vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=64, layer_types=["indexed_attention", "full_attention"],
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"layer 0: expected attention over all keys or over a window, got a Sta"):
        find_layers(empty_model(config, torch.float32), 64, 8)


def test_a_configuration_without_a_language_model_is_refused() -> None:
    from transformers import ViTConfig

    with pytest.raises(CheckpointError, match=r"model_type 'vit': expected a configuration that transformers builds"):
        empty_model(ViTConfig(), torch.float32)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("bloom", {}, r"BloomForCausalLM: expected a call of transformers' attention interface by each of 2 layers"),
        ("falcon", {}, r"model_type 'falcon': expected attention through transformers' interface, got code of its own"),
        (
            "helium",
            {},
            r"HeliumForCausalLM: expected a model that runs over a cache of ours, got, in \S+: RuntimeError",
        ),
    ],
)
def test_an_architecture_that_cannot_be_exported_says_why(name: str, more: dict[str, int], message: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(name, **{**CONFIGS["qwen2"], **more})
    with pytest.raises(CheckpointError, match=message):
        find_layers(empty_model(config, torch.float32), 64, 8)


@pytest.mark.parametrize("name", ["position_bias", "alibi", "head_mask", "attention_bias"])
def test_attention_that_is_more_than_we_compute_is_refused(name: str) -> None:
    q = torch.zeros(1, 2, 3, 8)
    attention(torch.nn.Identity(), q, q, q, None, **{name: None})
    with pytest.raises(CheckpointError, match=rf"Identity: expected attention of queries.*, got {name} too"):
        attention(torch.nn.Identity(), q, q, q, None, **{name: torch.zeros(2)})


def test_padding_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"mask: expected prompts without padding, got a padding mask"):
        mask(
            q_offset=torch.arange(2), kv_length=4, kv_offset=0, mask_function=lambda b, h, q, k: k <= q,
            attention_mask=torch.ones(1, 4),
        )  # fmt: skip
