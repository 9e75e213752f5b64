"""Choosing the next token on the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from etcuda.errors import GenerationError

Logits = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen; the filters apply in this order, as in transformers.

    Attributes:
        repetition_penalty: logits of tokens in the prompt and the answer are divided by it if positive, multiplied
            otherwise (Keskar et al., 2019); 1 for none.
        temperature: logits are divided by it; 0 takes the greatest (greedy), and the filters do not matter.
        top_k: only so many of the likeliest tokens stay; 0 for all.
        top_p: only the fewest likeliest tokens whose probabilities reach it stay (Holtzman et al., 2020); 1 for all.
        min_p: only tokens at least so likely, relative to the likeliest, stay (Nguyen et al., 2024); 0 for all.
        seed: of the random numbers, 0 or more; the same seed gives the same answer.

    Raises:
        GenerationError: a value is out of its range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("repetition_penalty", self.repetition_penalty > 0, "a positive number", self.repetition_penalty),
            ("temperature", self.temperature >= 0 and math.isfinite(self.temperature), "0 or more", self.temperature),
            ("top_k", self.top_k >= 0, "0 for all, or a number of tokens", self.top_k),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1", self.top_p),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1", self.min_p),
            ("seed", self.seed >= 0, "0 or more", self.seed),
        )
        for name, holds, expected, got in checks:
            if not holds:
                raise GenerationError(f"{name}: expected {expected}, got {got!r}.")


class Sampler:
    """Chooses tokens one after the other.

    Args:
        options: how.
        seen: tokens of the prompt, for the repetition penalty.
    """

    def __init__(self, options: SamplingOptions, seen: Sequence[int] = ()) -> None:
        self._options = options
        self._seen = set(seen)
        self._random = np.random.Philox(key=options.seed)

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token for ``logits`` [vocab_size].

        Raises:
            GenerationError: the logits are not numbers.
        """
        values = logits.astype(np.float64)
        if np.isnan(values).any():
            raise GenerationError("logits: expected numbers, got NaN. The weights are damaged, or fp16 overflowed.")
        values = self._penalised(values)
        token = int(np.argmax(values)) if self._options.temperature == 0 else self._drawn(values)
        self._seen.add(token)
        return token

    def _penalised(self, logits: Logits) -> Logits:
        penalty = self._options.repetition_penalty
        if penalty != 1 and self._seen:
            chosen = np.fromiter(self._seen, dtype=np.int64)
            chosen = chosen[chosen < len(logits)]
            logits[chosen] = np.where(logits[chosen] > 0, logits[chosen] / penalty, logits[chosen] * penalty)
        return logits

    def _drawn(self, logits: Logits) -> int:
        # 53 bits of a raw word, whose stream numpy keeps from release to release.
        uniform = (int(self._random.random_raw()) >> 11) * 2.0**-53
        order, probabilities = filtered(logits, self._options)
        cumulative = np.cumsum(probabilities)
        place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        return int(order[min(place, len(order) - 1)])


def filtered(logits: Logits, options: SamplingOptions) -> tuple[npt.NDArray[np.int64], Logits]:
    """Tokens that may be drawn, the likeliest first, equal ones by number, and their probabilities, which sum to 1."""
    scaled = logits / options.temperature
    order = np.argsort(-scaled, kind="stable")
    if options.top_k:
        order = order[: options.top_k]
    weights = np.exp(scaled[order] - scaled[order[0]])
    probabilities = weights / weights.sum()
    if options.top_p < 1:
        # A token stays if those before it do not reach top_p yet.
        keep = np.cumsum(probabilities) - probabilities < options.top_p
        order, probabilities = order[keep], probabilities[keep]
    if options.min_p > 0:
        keep = probabilities >= options.min_p * probabilities[0]
        order, probabilities = order[keep], probabilities[keep]
    return order, probabilities / probabilities.sum()
