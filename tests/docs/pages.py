"""Runs the code blocks of a page of documentation, in order, and says what they print.

Blocks are fenced. What is done with one depends on its language:

- ``python`` is executed, in one namespace a page. A ``text`` block behind it is what it prints.
- ``console`` has commands behind ``$ `` and what they print. They are executed in the page's folder. Behind the comment
  ``<!-- parsed: REASON -->`` their options are parsed alone. Commands that set up an environment, ``pip`` and ``make``,
  are compared with what the repository has.
- ``cpp`` and ``cmake`` are parts of files of ``examples/cpp``, which other tests build and run.

In what is expected, ``...`` stands for what differs from run to run: a part of a line, or, alone, any lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "docs/first-model.md",
    "docs/llm.md",
    "docs/quantization.md",
    "docs/runtime-python.md",
    "docs/runtime-cpp.md",
    "docs/targets.md",
    "docs/troubleshooting.md",
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PARSED = re.compile(r"<!-- parsed: .+ -->\n\Z")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where its text begins and ends in the page, and whether its commands are parsed alone."""

    language: str
    text: str
    start: int
    end: int
    parsed: bool


@dataclasses.dataclass(frozen=True)
class Printed:
    """What a command or a block printed, where the page says what it prints."""

    start: int
    end: int
    expected: str
    got: str

    @property
    def matches(self) -> bool:
        return re.fullmatch(pattern(self.expected), self.got.strip("\n"), re.DOTALL) is not None


def pattern(expected: str) -> str:
    """A regular expression for what is expected: trailing blanks are left out, ``...`` is anything."""
    lines = []
    for line in expected.strip("\n").split("\n"):
        if line.strip() == "...":
            lines.append(r"(?:[^\n]*(?:\n|\Z))*?")
        else:
            lines.append(r"[^\n]*".join(map(re.escape, line.rstrip().split("..."))) + r"[ ]*(?:\n|\Z)")
    return "".join(lines) + r"\n*"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(found[1], found[2], found.start(2), found.end(2), _PARSED.search(page[: found.start()]) is not None)
        for found in _FENCE.finditer(page)
    ]


def indented_lines(page: str) -> list[str]:
    """Lines of indented code, which would not be run: four blanks behind an empty line, outside of fences."""
    return re.findall(r"(?<=\n\n)    \S.*", _FENCE.sub("", page))


def commands(block: Block) -> Iterator[tuple[str, int, int]]:
    """Each command of a console block, and where what it prints begins and ends in the page."""
    found = list(re.finditer(r"^\$ ((?:.*\\\n)*.*)\n", block.text, re.MULTILINE))
    assert found, "expected commands behind '$ '"
    assert found[0].start() == 0, "expected the first line to be a command"
    for command, after in zip(found, [*found[1:], None], strict=True):
        end = len(block.text) if after is None else after.start()
        yield command[1].replace("\\\n", " "), block.start + command.end(), block.start + end


class Runner:
    """Runs pages in one folder, so that what one exports is there for the next.

    Args:
        folder: to run in; the repository's examples are in it by a link.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._printed: dict[str, str] = {}
        if not (folder / "examples").exists():
            (folder / "examples").symlink_to(ROOT / "examples")
            for name in ("executor_runner", "llm_runner"):
                main = "llm_main" if name == "llm_runner" else "main"
                script = folder / "bin" / name
                script.parent.mkdir(exist_ok=True)
                script.write_text(
                    f"#!{sys.executable}\nimport sys\nfrom etcuda.runner import {main}\nsys.exit({main}())\n"
                )
                script.chmod(0o755)

    def run(self, name: str, page: str) -> Iterator[Printed]:
        """Runs the blocks of a page; yields what they print where the page says it."""
        space: dict[str, Any] = {"__name__": "__main__"}
        found = blocks(page)
        for place, block in enumerate(found):
            before = f"{name}, line {page[: block.start].count(chr(10))}"
            if block.language == "python":
                after = found[place + 1] if place + 1 < len(found) else None
                code = compile(block.text, before, "exec")
                out = io.StringIO()
                with contextlib.chdir(self._folder), contextlib.redirect_stdout(out):
                    exec(code, space)
                if after is not None and after.language == "text":
                    yield Printed(after.start, after.end, after.text, out.getvalue())
            elif block.language == "console":
                for command, start, end in commands(block):
                    printed = self._command(command, block.parsed)
                    if printed is not None:
                        yield Printed(start, end, page[start:end], printed)
            elif block.language in ("cpp", "cmake"):
                assert is_part_of_an_example(block.text), f"{before}: expected a part of a file of examples/cpp"
            else:
                behind = place > 0 and found[place - 1].language == "python"
                assert block.language == "text", f"{before}: a block of {block.language!r} is run by nothing"
                assert behind, f"{before}: expected python before what it prints"

    def _command(self, command: str, parsed: bool) -> str | None:
        words = shlex.split(command, comments=True)
        if words[0] in ("pip", "make"):
            check_set_up(words)
            return None
        if parsed:
            parse(words)
            return None
        if command not in self._printed:
            inside = words[0] == "etcuda" and not set(command) & set("|<>;&")
            self._printed[command] = self._inside(words[1:]) if inside else self._outside(command)
        return self._printed[command]

    def _inside(self, words: list[str]) -> str:
        from click.testing import CliRunner

        from etcuda.cli import cli

        with contextlib.chdir(self._folder):
            done = CliRunner().invoke(cli, words, prog_name="etcuda")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return without_deprecation(done.output)

    def _outside(self, command: str) -> str:
        scripts = [str(self._folder / "bin"), str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        place = {"PATH": os.pathsep.join(scripts), "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder,
            env={**os.environ, **place},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return without_deprecation(done.stdout)


def without_deprecation(printed: str) -> str:
    """What was printed, without a deprecation inside torchao, which has the time in it."""
    return "".join(line for line in printed.splitlines(keepends=True) if "torch/utils/_pytree.py" not in line)


def is_part_of_an_example(text: str) -> bool:
    """Whether the lines follow each other in a file of examples/cpp, but for how far they are indented."""
    wanted = [line.strip() for line in text.strip().splitlines()]
    for path in sorted((ROOT / "examples" / "cpp").iterdir()):
        if path.suffix in (".cpp", ".txt"):
            lines = [line.strip() for line in path.read_text().splitlines()]
            if any(lines[place : place + len(wanted)] == wanted for place in range(len(lines))):
                return True
    return False


def parse(words: list[str]) -> None:
    """Parses a command of etcuda without running it.

    Raises:
        click.UsageError: it has no such option, or a value of another kind.
    """
    import click

    from etcuda.cli import cli

    assert words[0] == "etcuda", f"expected a command of etcuda, got {words[0]}"
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None, f"etcuda has no command {words[1]!r}"
    command.make_context(words[1], words[2:])


def check_set_up(words: list[str]) -> None:
    """Compares a command that sets up an environment with the Makefile and pyproject.toml."""
    makefile, project = (ROOT / "Makefile").read_text(), tomllib.loads((ROOT / "pyproject.toml").read_text())
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
        return
    assert words[1] == "install", words
    extras = project["project"]["optional-dependencies"]
    expanded = makefile.replace("$(2)", re.search(r"^TORCH \?= (.+)$", makefile, re.MULTILINE)[1])  # type: ignore[index]
    lines = [
        line
        for line in expanded.splitlines()
        if "pip install" in line or "pip wheel" in line or line.startswith("BUILD_TOOLS")
    ]
    known = [word for line in lines for word in shlex.split(line)]
    for word in words[2:]:
        package = re.fullmatch(r"(?:etcuda|\.)(?:\[([\w,]+)\])?", word)
        if package is not None:
            assert set(filter(None, (package[1] or "").split(","))) <= set(extras), f"{word}: no such extra"
        else:
            assert word in known, f"{word}: the Makefile installs no such thing"
