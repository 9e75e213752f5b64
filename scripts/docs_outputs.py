"""Writes what the code blocks of the documentation print into it, where it says something else.

    python scripts/docs_outputs.py [README.md docs/llm.md ...]

A line that stands for what was printed, by its ``...``, stays. To be called after the example's language model was
trained again, or after a command prints something else; ``git diff`` shows what changed.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from tests.docs.pages import PAGES, Printed, Runner, pattern  # noqa: E402


def merged(expected: str, got: str) -> str:
    """What was printed, with the lines of ``expected`` that stand for a line of it in that line's place."""
    with_dots = [line for line in expected.splitlines() if "..." in line and line.strip() != "..."]
    lines = []
    for line in got.strip("\n").splitlines():
        stands = next((each for each in with_dots if re.fullmatch(pattern(each), line)), None)
        lines.append(line.rstrip() if stands is None else stands)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the pages, in their order, and rewrites them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", default=PAGES)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(pathlib.Path(folder))
        for name in parser.parse_args().pages:
            page = (ROOT / name).read_text()
            wrong: list[Printed] = [each for each in runner.run(name, page) if not each.matches]
            for each in reversed(wrong):
                page = page[: each.start] + merged(each.expected, each.got) + page[each.end :]
            if wrong:
                (ROOT / name).write_text(page)
            print(f"{name}: {len(wrong)} changed")


if __name__ == "__main__":
    main()
