"""Every code block of README.md and of the pages for a task is run, and prints what the page says."""

from __future__ import annotations

import pathlib

import click
import pytest

from tests.docs.pages import PAGES, ROOT, Block, Printed, Runner, blocks, check_set_up, commands, indented_lines, parse

pytestmark = pytest.mark.xdist_group("docs")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("docs"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_blocks_do_what_they_say(name: str, runner: Runner) -> None:
    pytest.importorskip("executorch.runtime")
    page = (ROOT / name).read_text()
    wrong = [printed for printed in runner.run(name, page) if not printed.matches]
    assert [f"expected:\n{each.expected}\ngot:\n{each.got}" for each in wrong] == []


@pytest.mark.parametrize("name", PAGES)
def test_no_code_stands_outside_of_blocks(name: str) -> None:
    assert indented_lines((ROOT / name).read_text()) == []


def test_pages_are_linked() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in PAGES if name != "README.md" and f"]({name})" not in readme] == []


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ("a ... c", "a b c", True),
        ("a ... c", "a b d", False),
        ("a\n...\nz", "a\nb\nc\nz", True),
        ("a\n...\nz", "a\nz", True),
        ("a\n...", "a\nb\nc", True),
        ("a\nb", "a", False),
        ("a", "a\nb", False),
        ("", "a", False),
        ("a  ", "a", True),
    ],
)
def test_dots_stand_for_what_differs(expected: str, got: str, same: bool) -> None:
    assert Printed(0, 0, expected, got).matches == same


def test_a_page_is_taken_apart() -> None:
    page = "Text\n\n```python\nx = 1\n```\n\n<!-- parsed: no GPU -->\n```console\n$ etcuda a \\\n    b\nout\n$ c\n```\n"
    python, console = blocks(page)
    assert (python.language, python.text, python.parsed) == ("python", "x = 1\n", False)
    assert (console.language, console.parsed) == ("console", True)
    assert [(command, page[start:end]) for command, start, end in commands(console)] == [
        ("etcuda a      b", "out\n"),
        ("c", ""),
    ]
    assert indented_lines("a\n\n    b\n\n```text\n\n    c\n```\n") == ["    b"]


def test_what_is_not_run_is_an_error(tmp_path: pathlib.Path) -> None:
    runner = Runner(tmp_path)
    for page, message in (
        ("```\nx\n```\n", "is run by nothing"),
        ("```text\nx\n```\n", "expected python before"),
        ("```cpp\nint nowhere;\n```\n", "expected a part of a file"),
        ("```python\nassert False, 'no'\n```\n", "no"),
    ):
        with pytest.raises(AssertionError, match=message):
            list(runner.run("page", page))
    with pytest.raises(AssertionError, match="expected the first line to be a command"):
        list(commands(Block("console", "out\n$ a\n", 0, 8, False)))
    (printed,) = runner.run("page", "```console\n$ echo $((1 + 1))\n3\n```\n")
    assert (printed.got, printed.matches) == ("2\n", False)


def test_commands_that_are_parsed_alone_have_the_options_that_there_are() -> None:
    parse(["etcuda", "plan", "checkpoint", "--gpu", "h200"])
    with pytest.raises(click.UsageError, match="No such option"):
        parse(["etcuda", "plan", "checkpoint", "--graphics", "h200"])
    check_set_up(["pip", "install", "etcuda[llm]"])
    check_set_up(["make", "demo"])
    for words in (["make", "dinner"], ["pip", "install", "etcuda[dinner]"], ["pip", "install", "dinner"]):
        with pytest.raises(AssertionError):
            check_set_up(words)
