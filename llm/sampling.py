"""Choosing the next token on the host."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from etcuda.errors import GenerationError

Logits = npt.NDArray[np.float64]
# Of the answer's tokens so far: which tokens may follow, [vocab_size] of bool. A grammar, for one.
Allow = Callable[[Sequence[int]], npt.NDArray[np.bool_]]


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
        seed: of the random numbers, 0 to 2**63 - 1; the same seed gives the same answer.
        presence_penalty: is taken from logits of tokens that the answer has, before the temperature; 0 for none.
        frequency_penalty: the same, times how often it has them.
        logit_bias: tokens and what is added to their logits. These three are the host's: ``generate_step`` is not
            used where one is set.

    Raises:
        GenerationError: a value is out of its range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def needs_host(self) -> bool:
        """Whether something is set that ``generate_step`` does not know."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)

    def __post_init__(self) -> None:
        checks = (
            (
                "repetition_penalty",
                0 < self.repetition_penalty < math.inf,
                "a positive number",
                self.repetition_penalty,
            ),
            ("temperature", self.temperature >= 0 and math.isfinite(self.temperature), "0 or more", self.temperature),
            ("top_k", self.top_k >= 0, "0 for all, or a number of tokens", self.top_k),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1", self.top_p),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1", self.min_p),
            ("seed", 0 <= self.seed < 1 << 63, "0 to 2**63 - 1", self.seed),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a number", self.presence_penalty),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a number", self.frequency_penalty),
            (
                "logit_bias",
                all(token >= 0 and math.isfinite(value) for token, value in self.logit_bias),
                "tokens from 0 on, each with a number",
                self.logit_bias,
            ),
        )
        for name, holds, expected, got in checks:
            if not holds:
                raise GenerationError(f"{name}: expected {expected}, got {got!r}.")


class Sampler:
    """Chooses tokens one after the other.

    Args:
        options: how.
        seen: tokens of the prompt, for the repetition penalty.
        allow: which tokens may be drawn; ``None`` for all.
    """

    def __init__(self, options: SamplingOptions, seen: Sequence[int] = (), allow: Allow | None = None) -> None:
        self._options = options
        self._seen = set(seen)
        self._counts: collections.Counter[int] = collections.Counter()
        self._allow, self._chosen = allow, list[int]()
        self._random = np.random.Philox(key=options.seed)

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token for ``logits`` [vocab_size].

        Raises:
            GenerationError: the logits are not numbers, or no token may be drawn.
        """
        values = logits.astype(np.float64)
        if np.isnan(values).any():
            raise GenerationError("logits: expected numbers, got NaN. The weights are damaged, or fp16 overflowed.")
        values = self._biased(self._penalised(values))
        if self._allow is not None:
            values[~allowed_tokens(self._allow, self._chosen, len(values))] = -np.inf
        token = int(np.argmax(values)) if self._options.temperature == 0 else self._drawn(values)
        self._seen.add(token)
        self._counts[token] += 1
        if self._allow is not None:
            self._chosen.append(token)
        return token

    def _penalised(self, logits: Logits) -> Logits:
        penalty = self._options.repetition_penalty
        if penalty != 1 and self._seen:
            chosen = np.fromiter(self._seen, dtype=np.int64)
            chosen = chosen[chosen < len(logits)]
            logits[chosen] = np.where(logits[chosen] > 0, logits[chosen] / penalty, logits[chosen] * penalty)
        return logits

    def _biased(self, logits: Logits) -> Logits:
        options = self._options
        if options.presence_penalty or options.frequency_penalty:
            for token, count in self._counts.items():
                logits[token] -= options.presence_penalty + count * options.frequency_penalty
        for token, value in options.logit_bias:
            if token >= len(logits):
                raise GenerationError(
                    f"logit_bias: expected tokens from 0 to {len(logits) - 1}, got {token}. Leave it out."
                )
            logits[token] += value
        return logits

    def _drawn(self, logits: Logits) -> int:
        # 53 bits of a raw word, whose stream numpy keeps from release to release.
        uniform = (int(self._random.random_raw()) >> 11) * 2.0**-53
        return draw(logits, self._options, uniform)


def allowed_tokens(allow: Allow, tokens: Sequence[int], vocab_size: int) -> npt.NDArray[np.bool_]:
    """The tokens that may follow ``tokens``, as ``allow`` says.

    Raises:
        GenerationError: it says something else than a bool for each token, or allows none.
    """
    mask = np.asarray(allow(tokens))
    if mask.dtype != np.bool_ or mask.shape != (vocab_size,):
        raise GenerationError(
            f"allow: expected an array of {vocab_size} bools, one a token, got {mask.dtype} of shape "
            f"{list(mask.shape)}."
        )
    if not mask.any():
        raise GenerationError(
            f"allow: expected one token or more that may follow {len(tokens)} tokens of the answer, got none. Allow a "
            "token that ends the answer."
        )
    return mask


def draw(logits: Logits, options: SamplingOptions, uniform: float) -> int:
    """The token of ``filtered`` at which the sum of probabilities passes ``uniform``, from 0 to below 1.

    Only as many of the likeliest are put in order as that takes: all of 128,256 take 15 ms.
    """
    scaled = logits / options.temperature
    most = min(options.top_k or len(scaled), len(scaled))
    weights = np.exp(scaled - scaled.max())
    count = most if options.top_k else min(_FIRST, most)
    while True:
        order = _likeliest(scaled, count)
        cumulative = np.cumsum(weights[order])
        total = cumulative[-1] if count == most else weights.sum()
        kept = count
        if options.top_p < 1:
            kept = int(np.searchsorted(cumulative - weights[order], options.top_p * total, side="left"))
        if options.min_p > 0:
            kept = min(kept, int(np.count_nonzero(weights[order] >= options.min_p)))
        filters = options.top_p < 1 or options.min_p > 0
        if kept < count or count == most or not filters:
            mass = cumulative[kept - 1] if filters else total
            place = int(np.searchsorted(cumulative[:kept], uniform * mass, side="right"))
            if place < kept or kept < count or count == most:
                return int(order[min(place, kept - 1)])
        count = min(_GROWTH * count, most)


_FIRST, _GROWTH = 256, 32


def _likeliest(values: Logits, count: int) -> npt.NDArray[np.int64]:
    """Places of the ``count`` greatest values, the greatest first, equal ones by number."""
    places = np.arange(len(values))
    if count < len(values):
        # All that equal the last one are among them until they are in order.
        places = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return places[np.argsort(-values[places], kind="stable")][:count]


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
