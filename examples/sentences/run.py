"""Runs the exported encoder beside PyTorch."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time

from examples.running import Session
from examples.sentences.model import SentenceEncoder, extract, nearest, similarities, tokenize


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The program beside PyTorch.

    Attributes:
        error: the greatest difference of two similarities.
        nearest: for each sentence, the place of the one that is most like it, by the program.
        expected: the same by PyTorch.
        likeness: of each and its nearest, by the program.
        milliseconds: of a call of the program, and of PyTorch, for all sentences.
    """

    error: float
    nearest: list[int]
    expected: list[int]
    likeness: list[float]
    milliseconds: tuple[float, float]


def compare(program: pathlib.Path) -> Comparison:
    """Vectors of the example's sentences by the program and by PyTorch."""
    checkpoint = extract(program.parent)
    inputs, encoder, session = tokenize(checkpoint), SentenceEncoder(checkpoint).eval(), Session(program)
    eager_seconds = []
    for _ in range(3):
        start = time.perf_counter()
        expected = encoder(*inputs)
        eager_seconds.append(time.perf_counter() - start)
        vectors = session.call("forward", *inputs)
    found = nearest(vectors)
    return Comparison(
        error=float((similarities(vectors) - similarities(expected)).abs().max()),
        nearest=found,
        expected=nearest(expected),
        likeness=[float(similarities(vectors)[place, other]) for place, other in enumerate(found)],
        milliseconds=(statistics.median(session.seconds) * 1e3, statistics.median(eager_seconds) * 1e3),
    )
