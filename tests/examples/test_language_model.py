"""The example's language model: its text, its tokenizer, its checkpoint, and the GGUF file of it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from etcuda.errors import GenerationError
from etcuda.llm.export import ExportOptions, load_model
from etcuda.llm.gguf_checkpoint import read_gguf_config, save_gguf_tokenizer
from etcuda.llm.model import TextModel
from etcuda.llm.quantization import QuantOptions
from etcuda.llm.tokenizer import Tokenizer
from examples.language_model.gguf_file import interleaved, write_gguf
from examples.language_model.perplexity import HeldOut, perplexity
from examples.language_model.text import chapters
from examples.language_model.tokenizer import MAX_LENGTH, VOCAB_SIZE, train_tokenizer
from examples.language_model.train import CHECKPOINT, encode, windows

PROMPT = "It is a truth universally acknowledged"
MOST = 60.0


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def test_chapters_are_split_once_and_for_all() -> None:
    split = chapters()
    assert (len(split.train), len(split.held_out)) == (256, 13)
    assert not set(split.train) & set(split.held_out)
    assert all(chapter.startswith("Chapter ") for chapter in [*split.train, *split.held_out])
    assert any(chapter.startswith(f"Chapter 1\n{PROMPT}") for chapter in split.train)


def test_the_tokenizer_is_that_of_the_checkpoint() -> None:
    from transformers import AutoTokenizer

    ours, saved = train_tokenizer(chapters().train), AutoTokenizer.from_pretrained(CHECKPOINT)
    assert ours.get_vocab() == saved.get_vocab()
    assert len(saved) == VOCAB_SIZE
    text = chapters().held_out[0]
    assert ours(text).input_ids == saved(text).input_ids == Tokenizer(CHECKPOINT).encode(text)
    assert Tokenizer(CHECKPOINT).decode(saved(text).input_ids) == text


def test_windows_begin_as_prompts_do() -> None:
    texts = [torch.arange(10, 400), torch.arange(1000, 1400)]
    made = windows(texts, 3, 0, torch.Generator().manual_seed(1))
    assert made.shape == (3, MAX_LENGTH + 1)
    assert (made[:, 0] == 0).all()
    stream = torch.cat(texts).tolist()
    for row in made[:, 1:].tolist():
        start = stream.index(row[0])
        assert row == stream[start : start + MAX_LENGTH]


def test_a_conversation_is_what_it_is_in_a_novel() -> None:
    tokenizer = Tokenizer(CHECKPOINT)
    messages = [
        {"role": "system", "content": "Emma came in. "},
        {"role": "user", "content": "How do you do?"},
        {"role": "assistant", "content": "Very well."},
    ]
    assert tokenizer.render(messages) == '<|begin|>Emma came in.\n"How do you do?"\n"Very well."\n"'
    assert tokenizer.render(messages[1:2], add_generation_prompt=False) == '<|begin|>"How do you do?"\n'
    for wrong, role in (([{"role": "tool", "content": "1"}], "tool"), (messages[::-1], "system")):
        with pytest.raises(GenerationError, match=f"expected the roles user and assistant, .* got {role}"):
            tokenizer.render(wrong)


def test_the_checkpoint_has_learned(model: Any) -> None:
    from transformers import AutoTokenizer

    # A model that knows nothing is at 2048, one that knows how often each token is at about 600.
    held_out = HeldOut(AutoTokenizer.from_pretrained(CHECKPOINT))
    assert perplexity(model, held_out.windows(4)) < MOST


@pytest.mark.parametrize(("kind", "within"), [("F16", 1e-3), ("Q8_0", 0.05)])
def test_the_gguf_file_is_the_checkpoint(model: Any, kind: str, within: float, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(CHECKPOINT, path, kind)
    config = read_gguf_config(path)
    for name in ("hidden_size", "head_dim", "num_key_value_heads", "tie_word_embeddings", "rope_parameters"):
        assert getattr(config, name) == getattr(model.config, name), name
    options = ExportOptions(
        target="host", dtype="fp32", max_seq_len=64, chunk=64, quant=QuantOptions(activation_dtype="exact")
    )
    read, layers = load_model(path, config, options, lambda done, total: None)
    tokens = torch.tensor([Tokenizer(CHECKPOINT).encode(PROMPT)])
    with torch.no_grad():
        got = TextModel(read, layers).eval()(tokens, torch.arange(tokens.shape[1]))
        expected = model(tokens).logits[0, -1:]
    assert float((got - expected).norm() / expected.norm()) < within
    (tmp_path / "words").mkdir()
    save_gguf_tokenizer(path, tmp_path / "words")
    words, text = Tokenizer(tmp_path / "words"), chapters().held_out[1]
    assert words.encode(text) == Tokenizer(CHECKPOINT).encode(text)
    messages = [{"role": "user", "content": "How do you do?"}]
    assert words.render(messages) == Tokenizer(CHECKPOINT).render(messages)


def test_rows_of_heads_are_interleaved() -> None:
    weight = torch.arange(8.0).reshape(8, 1)
    assert interleaved(weight, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_texts_end_where_chapters_do() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    (ids,) = encode(["Chapter 1\nShe came."], tokenizer)
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in ids
