"""To which lengths a session can be taken back."""

from __future__ import annotations

import dataclasses

from etcuda.errors import GenerationError


@dataclasses.dataclass
class KeptTokens:
    """What the caches of a sequence still hold.

    Keys and values stand at their positions, so that a sequence that is taken back needs nothing but to be shorter.
    Two things are lost meanwhile: a ring overwrites the keys of the tokens in front of its window, and a recurrent
    state that is not kept is gone. From the first token on, everything can be filled anew.

    Attributes:
        max_rollback: tokens by which a sequence can be taken back; ``None`` for any number.
        state_slots: recurrent states that are kept, of the last tokens; 0 where ``max_rollback`` says it all.
        oldest: the least number of tokens, beside none, to which the sequence can be taken back.
        written: tokens that were ever written since the caches were empty.
    """

    max_rollback: int | None
    state_slots: int
    oldest: int = 0
    written: int = 0

    def clear(self) -> None:
        """The sequence has no tokens."""
        self.oldest = self.written = 0

    def note(self, length: int, each: bool) -> None:
        """The sequence has ``length`` tokens now.

        Args:
            length: of the sequence.
            each: whether a recurrent state was kept behind each token that was appended; behind the last one if not.
        """
        self.written = max(self.written, length)
        limit = self.max_rollback
        if self.state_slots:
            limit = self.state_slots - 1
            if not each:
                self.oldest = length
        if limit is not None:
            self.oldest = max(self.oldest, self.written - limit)

    def check(self, count: int, length: int) -> None:
        """Checks that a sequence of ``length`` tokens can be taken back by ``count``.

        Raises:
            GenerationError: it cannot.
        """
        if not 0 <= count <= length:
            raise GenerationError(f"rollback: expected 0 to the {length} tokens that the session holds, got {count}.")
        if count in (0, length) or length - count >= self.oldest:
            return
        most = max(0, length - self.oldest)
        if self.max_rollback == 0 and not self.state_slots:
            raise GenerationError(
                f"rollback: expected a program that keeps recurrent states of more tokens than the last, got {count} "
                "tokens to take back. Export with --rollback 15, or less, or fork the session before."
            )
        if self.state_slots:
            raise GenerationError(
                f"rollback: expected at most {most} tokens, got {count}: recurrent states are kept of the last "
                f"{self.state_slots} tokens, and of a prompt's call behind its last token alone. Fork the session "
                "before, or export with a greater --rollback."
            )
        raise GenerationError(
            f"rollback: expected at most {most} tokens, got {count}: the rings of sliding layers have lost the keys "
            "of earlier ones. Fork the session before, or export with a greater --chunk."
        )
