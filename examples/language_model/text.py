"""The six novels, chapter by chapter, and which chapters a model is trained on.

``novels.txt.xz`` holds Jane Austen's novels in the order in which they were published, from Project Gutenberg's texts
as the R package janeaustenr 1.0.0 has them. A line is a paragraph; a form feed parts chapters, whose first line is
their number.
"""

from __future__ import annotations

import lzma
import pathlib
from typing import NamedTuple

NOVELS = pathlib.Path(__file__).parent / "novels.txt.xz"
# Of the 269 chapters every twentieth, which are from all novels: 5 percent, and none follows another.
HELD_OUT_EVERY = 20


class Split(NamedTuple):
    """Chapters, each a text."""

    train: list[str]
    held_out: list[str]


def chapters() -> Split:
    """The chapters to train on, and those that no model and no tokenizer of ours has seen."""
    split = Split([], [])
    for number, chapter in enumerate(lzma.decompress(NOVELS.read_bytes()).decode().split("\f")):
        held_out = number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        (split.held_out if held_out else split.train).append(chapter)
    return split
