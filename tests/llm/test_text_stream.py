"""Pieces of text: characters of several byte tokens, bytes that are none, and what a long answer keeps."""

from __future__ import annotations

import pathlib
import random

import pytest

from etcuda.llm.tokenizer import TextStream, Tokenizer
from tests.llm.conftest import train_tokenizer


def byte_fallback(folder: pathlib.Path) -> Tokenizer:
    """As of Llama 2, Mistral and Gemma: what is not in the vocabulary becomes a token for each byte."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abcdefghijklmnopqrstuvwxyz"]
    vocab = {word: number for number, word in enumerate(words)}
    fast = Fast(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(parts)
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "level").mkdir()
    train_tokenizer(folder / "level")
    return {"level": Tokenizer(folder / "level"), "fallback": byte_fallback(folder / "fallback")}


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.put(token) for token in ids), stream.end()]


@pytest.mark.parametrize("kind", ["level", "fallback"])
def test_any_text_is_given_whole(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    made, chosen = tokenizers[kind], random.Random(1)
    texts = ["ab 你好世界 cd", "你好世界" * 5, "🙂" * 9 + " ok", "a\u0301\u00e9 b"]
    texts += ["".join(chosen.choice(["a", " ", "é", "你", "🙂", "the "]) for _ in range(40)) for _ in range(50)]
    for text in texts:
        ids = made.encode(text, special=False)
        given = pieces(made, ids)
        assert "".join(given) == made.decode(ids)
        assert not any("\ufffd" in piece for piece in given), text


def test_the_text_of_one_token(tokenizers: dict[str, Tokenizer]) -> None:
    for kind, text in (("level", "ab the cd"), ("fallback", " ab the cd")):
        made = tokenizers[kind]
        ids = made.encode("ab the cd", special=False)
        # A text that begins with a space loses it where SentencePiece puts one before every text.
        assert "".join(made.text_of(token) for token in ids) == text
        *_, first, second = made.encode("a\u00e9", special=False)
        if kind == "fallback":
            assert [made.text_of(first), made.text_of(second)] == ["\ufffd", "\ufffd"]
    assert tokenizers["level"].text_of(6) == "<|end|>"


def test_a_character_is_given_with_its_last_byte(tokenizers: dict[str, Tokenizer]) -> None:
    made = tokenizers["fallback"]
    ids = made.encode("你好世界", special=False)
    assert [piece for piece in pieces(made, ids) if piece] == ["你", "好", "世", "界"]
    assert pieces(made, ids)[-2] == "界"


@pytest.mark.parametrize("kind", ["level", "fallback"])
def test_bytes_that_are_no_character_are_given_and_not_kept(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    made = tokenizers[kind]
    byte = made.id_of("<0xFF>" if kind == "fallback" else "ÿ")
    assert byte is not None
    stream, ids, said = TextStream(made), [byte] * 300, ""
    for number, token in enumerate(ids):
        said += stream.put(token)
        # The last ones may yet be the beginning of a character.
        assert len(said) >= number - 3
        assert len(stream._ids) <= 32
    assert said + stream.end() == made.decode(ids)
    letter = made.encode("a", special=False)
    assert "".join(pieces(made, [byte, *letter])).endswith("a")


def test_any_tokens_of_bytes_are_given_as_they_are_decoded(tokenizers: dict[str, Tokenizer]) -> None:
    made, chosen = tokenizers["level"], random.Random(2)
    for _ in range(100):
        ids = [chosen.randrange(made.size) for _ in range(60)]
        assert "".join(pieces(made, ids)) == made.decode(ids)


def test_special_tokens_in_a_row_lose_no_space(tokenizers: dict[str, Tokenizer], tmp_path: pathlib.Path) -> None:
    from tokenizers import Tokenizer as Fast

    byte_fallback(tmp_path / "special")
    path = tmp_path / "special" / "tokenizer.json"
    fast = Fast.from_file(str(path))
    fast.add_special_tokens(["<s>"])
    fast.save(str(path))
    made = Tokenizer(path.parent)
    word = made.encode("ab", special=False)
    ids = [*word, *[1] * 40, *word]
    assert "".join(pieces(made, ids)) == made.decode(ids) == "ab ab"
