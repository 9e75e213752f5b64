"""Tokenizer, template and pieces of text."""

from __future__ import annotations

import json
import pathlib
import types
from collections.abc import Callable
from typing import Any

import pytest

from etcuda.errors import CheckpointError, GenerationError
from etcuda.llm import tokenizer
from etcuda.llm.language_model import LanguageModel, _first, _overlap
from etcuda.llm.tokenizer import TextStream, Tokenizer
from tests.llm.architectures import VOCAB
from tests.llm.conftest import train_tokenizer

Checkpoint = Callable[[str], pathlib.Path]
_MESSAGES = [
    {"role": "system", "content": "Answer in verse."},
    {"role": "user", "content": "Shall I compare thee?"},
    {"role": "assistant", "content": "Thou art more lovely."},
    {"role": "user", "content": "And?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(made)
    return made


def test_ids_and_templates_are_those_of_transformers(folder: pathlib.Path) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    for text in ("Shall I compare thee to a summer's day?", "naïve 🙂 日本", " two  spaces\n", "<|user|>"):
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text).input_ids, skip_special_tokens=True)
    for end in (True, False):
        expected = theirs.apply_chat_template(_MESSAGES, tokenize=False, add_generation_prompt=end)
        assert ours.render(_MESSAGES, end) == expected
    expected_ids = theirs.apply_chat_template(_MESSAGES, add_generation_prompt=True)["input_ids"]
    assert ours.encode(ours.render(_MESSAGES), special=False) == expected_ids


def test_a_template_in_a_file_of_its_own_comes_first(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(GenerationError, match=r"chat: expected a chat template .* got none"):
        Tokenizer(tmp_path).render(_MESSAGES)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "bos_token": {"content": "B"}}))
    assert Tokenizer(tmp_path).render(_MESSAGES) == "old"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages | length }}")
    assert Tokenizer(tmp_path).render(_MESSAGES) == "B4"


@pytest.mark.parametrize("text", ["naïve 🙂🙂 日本語 text", " leading space", "a\n\nb  c", "🙂"])
def test_pieces_make_the_text(folder: pathlib.Path, text: str) -> None:
    made = Tokenizer(folder)
    stream = TextStream(made)
    ids = made.encode(text, special=False)
    pieces = [stream.put(token) for token in ids]
    assert "".join(pieces) + stream.end() == made.decode(ids) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_pieces_of_a_tokenizer_that_drops_the_first_space(tmp_path: pathlib.Path) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    words = {"\u2581the": 0, "\u2581cat": 1, "s": 2, "\u2581sat": 3, "<unk>": 4}
    fast = Fast(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    fast.save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer(tmp_path)
    ids = [0, 1, 2, 3] * 8
    stream = TextStream(made)
    assert "".join(stream.put(token) for token in ids) + stream.end() == made.decode(ids)


def test_characters_that_end_within_are_held_back(folder: pathlib.Path) -> None:
    made = Tokenizer(folder)
    stream = TextStream(made)
    *first, last = made.encode("🙂", special=False)
    assert len(first) > 0
    assert [stream.put(token) for token in first] == [""] * len(first)
    assert stream.put(last) == "🙂"
    assert [stream.put(token) for token in first] == [""] * len(first)
    assert stream.end() == made.decode(first)


def test_places_where_an_answer_ends() -> None:
    assert _first("one END two STOP", ("STOP", "END")) == 4
    assert _first("one", ("STOP",)) is None
    assert _overlap("one EN", ("END", "NEXT")) == 2
    assert _overlap("one N", ("END", "NEXT")) == 1
    assert _overlap("one", ("END",)) == 0


def test_a_damaged_tokenizer_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(GenerationError, match=r"tokenizer\.json: expected the program's tokenizer, got no such file"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(GenerationError, match=r"tokenizer\.json: expected a tokenizer, got"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(GenerationError, match=r"tokenizer_config\.json: expected JSON, got"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(GenerationError, match=r"tokenizer_config\.json: expected a JSON object, got a list"):
        Tokenizer(tmp_path)
    for template in (5, ["{{ 1 }}"], [{"name": "default", "template": 5}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        with pytest.raises(
            GenerationError, match=r"chat_template: expected a text, or a list of objects with name and"
        ):
            Tokenizer(tmp_path)


def test_the_tokenizer_of_another_model_is_refused(folder: pathlib.Path) -> None:
    program: Any = types.SimpleNamespace(vocab_size=VOCAB - 1, tokenizer_files={})
    with pytest.raises(GenerationError, match=rf"expected ids below the program's vocabulary of {VOCAB - 1}, got ids"):
        LanguageModel(program, folder)


def test_a_tokenizer_inside_a_program(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    files = tokenizer.read(folder)
    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]
    assert tokenizer.read(tmp_path) == {}
    program: Any = types.SimpleNamespace(vocab_size=VOCAB, tokenizer_files=files)
    inside, beside = LanguageModel(program, tmp_path).tokenizer, Tokenizer(folder)
    assert inside.encode("Shall I?") == beside.encode("Shall I?")
    assert inside.render(_MESSAGES) == beside.render(_MESSAGES)
    # One that lies beside it comes first.
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(GenerationError, match=r"tokenizer\.json: expected a tokenizer, got"):
        LanguageModel(program, tmp_path)


def test_a_program_has_the_tokenizer_of_its_last_export(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "m.pte"
    tokenizer.copy(folder, program)
    beside = tokenizer.folder_of(program)
    assert sorted(path.name for path in beside.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    (tmp_path / "none").mkdir()
    assert tokenizer.copy(tmp_path / "none", program) == []
    assert list(beside.iterdir()) == []


def test_a_token_for_images_is_not_counted(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from tokenizers import Tokenizer as Fast

    fast = Fast.from_file(str(folder / "tokenizer.json"))
    fast.add_special_tokens(["<image>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).id_of("<image>") == VOCAB
    tokenizer.check(tmp_path, VOCAB)
    with pytest.raises(CheckpointError, match=rf"below the vocab_size {VOCAB - 1} .* got ids up to {VOCAB - 1}"):
        tokenizer.check(tmp_path, VOCAB - 1)
