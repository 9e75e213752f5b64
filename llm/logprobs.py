"""Log-probabilities of an answer's tokens, for those who ask how sure the model was."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Of one token, as the model's logits say: before penalties, temperature and filters.

    Attributes:
        token: that was chosen.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens with theirs, the likeliest first, equal ones by number.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: npt.NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
    """Of a token that was chosen by ``logits`` [vocab_size], with the ``count`` likeliest ones."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    order = _likeliest(values, count)
    return TokenLogprobs(token, float(values[token]), tuple((int(each), float(values[each])) for each in order))


def _likeliest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """Places of the greatest ``count`` of ``values``, in order; without putting a whole vocabulary in order."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    least = np.partition(values, -count)[-count]
    found = np.flatnonzero(values >= least)
    return found[np.argsort(-values[found], kind="stable")[:count]]


class LogprobNotes:
    """Notes those of an answer's tokens while it is made.

    Args:
        count: how many of the likeliest tokens are noted beside each.

    Attributes:
        tokens: what was noted so far.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._last: tuple[int, npt.NDArray[np.float32]] | None = None
        self.tokens: list[TokenLogprobs] = []

    def hear(self, token: int, logits: npt.NDArray[np.float32]) -> None:
        """A token was chosen by ``logits`` [vocab_size]."""
        self._last = token, logits

    def keep(self) -> None:
        """The token that was chosen last is one of the answer, and not its end."""
        assert self._last is not None
        self.tokens.append(token_logprobs(self._last[1], self._last[0], self._count))
