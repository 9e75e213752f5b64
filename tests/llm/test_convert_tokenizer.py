"""Tokenizers in older files than tokenizer.json."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import pytest

from etcuda.cli import main
from etcuda.llm.convert_tokenizer import convert
from etcuda.llm.export import ExportSummary
from etcuda.llm.tokenizer import Tokenizer
from tests.llm.conftest import train_tokenizer


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """With a tokenizer as GPT-2 has it."""
    train_tokenizer(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(each) for each in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (tmp_path / "tokenizer.json").rename(tmp_path / "new.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return tmp_path


def test_an_older_tokenizer_is_converted(folder: pathlib.Path) -> None:
    (folder / "made").mkdir()
    assert convert(folder, folder / "made") == ""
    converted = Tokenizer(folder / "made")
    (folder / "new.json").rename(folder / "tokenizer.json")
    assert convert(folder, folder / "none") == "", "nothing is to be done"
    text = "Shall I compare thee, naïve 🙂?"
    assert converted.encode(text, special=False) == Tokenizer(folder).encode(text, special=False)


def test_why_there_is_no_tokenizer(folder: pathlib.Path) -> None:
    (folder / "merges.txt").unlink()
    (folder / "made").mkdir()
    said = convert(folder, folder / "made")
    assert said.startswith("expected vocab.json to be converted by transformers, got ")
    assert said.endswith("prompts and answers are token ids")
    assert list((folder / "made").iterdir()) == []
    (folder / "vocab.json").unlink()
    assert convert(folder, folder / "made").startswith("expected tokenizer.json in the checkpoint, got none;")


def test_an_export_takes_what_was_converted_and_says_what_is_missing(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[list[str]] = []

    def lowered(source: pathlib.Path, words: pathlib.Path, target: pathlib.Path, *_: Any) -> ExportSummary:
        found.append(sorted(path.name for path in words.iterdir() if path.suffix == ".json"))
        return ExportSummary([], "gpt2", 0, 0, 0, 64, 16, 0.0, {})

    monkeypatch.setattr(sys.modules["etcuda.llm.export"], "_export", lowered)
    config = {"model_type": "gpt2", "vocab_size": 512, "n_positions": 64}
    (folder / "config.json").write_text(json.dumps(config))
    command = ["export", str(folder), "-o", str(folder / "m.pte"), "--target", "host"]
    assert main(command) == 0
    assert "no tokenizer" not in capsys.readouterr().out
    assert found == [["tokenizer.json", "tokenizer_config.json"]]
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    assert main(command) == 0
    assert "no tokenizer: expected tokenizer.json in the checkpoint, got none;" in capsys.readouterr().out
    assert found[1] == []
