"""``etcuda export`` and ``etcuda generate``."""

from __future__ import annotations

import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from etcuda.cli import main
from etcuda.llm.extra import readable
from tests.llm.architectures import greedy, prompt
from tests.llm.conftest import Exported, checkpoint, program, train_tokenizer
from tests.serve.fakes import FakeProgram, expected, fake_model

__all__ = ["checkpoint", "program"]  # Fixtures.

Program = Callable[[str], Exported]


@pytest.mark.slow
def test_from_a_checkpoint_to_tokens(
    checkpoint: Callable[[str], pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Parts of the program come from the compile cache of the other tests' exports.
    arguments = ["--target", "host", "--dtype", "fp32", "--max-seq-len", "64", "--chunk", "16"]
    assert main(["export", str(checkpoint("llama")), "-o", str(tmp_path / "m.pte"), *arguments]) == 0
    said = capsys.readouterr().out
    assert said.startswith("llama: exported in ")
    assert f"{tmp_path}/m.ptd" in said
    assert "at run time: weights 545.2 KiB, caches 32.0 KiB for 64 tokens, prompts in chunks of 16" in said
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["m.ptd", "m.pte", "m.tokenizer"]
    assert main(["generate", str(tmp_path / "m.pte"), "-p", "Shall I", "-n", "8"]) == 0
    out, err = capsys.readouterr()
    assert len(out) > 1
    assert "prompt " in err
    assert "tok/s" in err


@pytest.mark.slow
def test_ids(program: Program, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    exported = program("llama")
    for suffix in (".pte", ".ptd"):
        shutil.copyfile(exported.path.with_suffix(suffix), tmp_path / f"m{suffix}")
    tokens = prompt(6)
    ids = ",".join(map(str, tokens))
    path = str(tmp_path / "m.pte")
    # What the export said, if this test is the first that needs it.
    capsys.readouterr()
    assert main(["generate", path, "--ids", ids, "-n", "9", "--ignore-eos", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [int(each) for each in out.split()] == greedy(exported.model, tokens, 9)
    figures = json.loads(err)
    assert (figures["prompt_tokens"], figures["generated_tokens"], figures["finish_reason"]) == (6, 9, "length")
    assert main(["generate", path, "--ids", ids, "-n", "4", "--n", "3", "--temperature", "2", "-q"]) == 0
    out, err = capsys.readouterr()
    assert len(set(out.splitlines())) == 3
    assert err == ""


@pytest.mark.slow
def test_prompts_and_conversations(
    program: Program, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    path = str(program("llama").path)
    (tmp_path / "prompt.txt").write_text("Shall I compare thee")
    capsys.readouterr()
    answers = []
    for given in (["-p", "Shall I compare thee"], ["-f", str(tmp_path / "prompt.txt")]):
        assert main(["generate", path, *given, "-n", "12", "-q", "--ignore-eos"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    chat = ["generate", path, "--chat", "--system", "Answer.", "-p", "Who?", "-n", "5", "-q"]
    assert main(chat) == 0
    assert len(capsys.readouterr().out) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of --prompt, --file and --ids, or --chat, got none"),
        (["-p", "a", "--ids", "1"], "expected one of --prompt, --file and --ids, or --chat, got 2"),
        (["--chat", "--ids", "1"], "expected --chat without --ids"),
        (["-p", "a", "--system", "b"], "expected --system with --chat"),
        (["-p", "a", "--top-p", "2"], "top_p: expected above 0, at most 1, got 2.0"),
        (["-f", "/nonexistent"], "/nonexistent: expected a text in UTF-8"),
        (["-p", "a"], "m.pte: expected a program, got no such file"),
    ],
)
def test_bad_arguments_of_generate(
    arguments: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(tmp_path / "m.pte"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_ids_that_are_none(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path / "m.pte"), "--ids", "1,x"]) == 2
    assert "--ids: expected numbers with commas between them, got '1,x'" in capsys.readouterr().err


def test_an_export_of_nothing(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "m.pte")]) == 2
    assert "expected a folder with config.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tokenizers" else found(name))
    assert main(["generate", "m.pte", "-p", "a"]) == 2
    assert "got none of the name tokenizers. Run: pip install 'etcuda[llm]'" in capsys.readouterr().err


def test_bytes_for_people() -> None:
    assert [readable(n) for n in (5, 2048, 3 << 20, 5 << 29)] == ["5 B", "2.0 KiB", "3.0 MiB", "2.50 GiB"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> FakeProgram:
    """What ``load`` gives: a program without a tokenizer, which computes next to nothing."""
    made = FakeProgram()
    monkeypatch.setattr("etcuda.llm.language_model.load", lambda *_: fake_model(made, tmp_path))
    return made


def test_an_interrupt_ends_the_answer_and_not_the_command(
    fake: FakeProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        if len(fake.calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    fake.gate = interrupt
    assert main(["generate", "m.pte", "--ids", "7,8", "-n", "90", "--n", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    (figures,) = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert (figures["finish_reason"], figures["generated_tokens"]) == ("cancelled", 6), "one answer, and its figures"
    assert [int(each) for each in out.split()] == expected([7, 8], 6)
    assert signal.getsignal(signal.SIGINT) is before


def test_lines_of_a_conversation_that_are_no_text(
    fake: FakeProgram, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"na\xefve\n"), encoding="utf-8"))
    assert main(["generate", "m.pte", "--chat"]) == 2
    assert "standard input: expected a text in UTF-8, got: " in capsys.readouterr().err


def test_a_line_of_the_worker_that_is_no_text(tokenizer: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A byte that is not UTF-8 ends a line and not the worker, which has a process of its own for its output."""
    lines = b'{"prompt": "na\xefve"}\n{"prompt": "Shall", "max_new_tokens": 2}\n'
    done = subprocess.run([sys.executable, "-c", _WORKER, str(tokenizer)], input=lines, capture_output=True, check=True)
    ready, refused, *_, ended = map(json.loads, done.stdout.splitlines())
    assert ready["ready"]
    assert "prompt: expected a text of whole characters, got" in refused["error"]
    assert (ended["done"], ended["completion_tokens"]) == (True, 2)


_WORKER = """
import pathlib, sys
import etcuda.llm.program
from tests.serve.fakes import FakeProgram
etcuda.llm.program.TextProgram = lambda *_: FakeProgram()
from etcuda.cli import main
sys.exit(main(["worker", "m.pte", "--tokenizer-path", sys.argv[1]]))
"""


@pytest.fixture
def tokenizer(tmp_path: pathlib.Path) -> pathlib.Path:
    train_tokenizer(tmp_path)
    return tmp_path
