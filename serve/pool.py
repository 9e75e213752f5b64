"""Sessions of one program, kept for the conversations that go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from etcuda.llm.program import TextProgram
from etcuda.llm.text_session import TokenSession

# A prefix that is shorter is computed sooner than a cache is copied.
_WORTH_A_COPY = 16


@dataclasses.dataclass(eq=False)
class Lease:
    """A session and who has it.

    Attributes:
        session: the caches.
        used: whether an answer is being made in it.
        turn: when it was last given back.
    """

    session: TokenSession
    used: bool = True
    turn: int = 0


class SessionPool:
    """At most so many sessions; the one that was not used for the longest time goes. For one thread.

    Args:
        program: loaded.
        size: most sessions, used ones among them.
    """

    def __init__(self, program: TextProgram, size: int, new_session: Any = TokenSession) -> None:
        self._program, self._size, self._new = program, size, new_session
        self._leases: list[Lease] = []
        self._turn = 0

    def __len__(self) -> int:
        return len(self._leases)

    def take(self, ids: Sequence[int]) -> Lease:
        """A session for a prompt: the one that holds most of it, a copy where another conversation would lose more.

        Sessions that are used are copied as well: between two calls of the program they are at rest.
        """
        best = max(self._leases, key=lambda each: (each.session.reusable(ids), not each.used, each.turn), default=None)
        kept = 0 if best is None else best.session.reusable(ids)
        if best is None or kept < _WORTH_A_COPY:
            return self._add(None)
        if not best.used and len(best.session.tokens) - kept <= kept:
            best.used = True
            return best
        return self.fork(best)

    def fork(self, lease: Lease) -> Lease:
        """A copy of a session; the session itself if there is room for no other and it is not used."""
        if not lease.used and len(self._leases) >= self._size and len(self._idle()) == 1:
            lease.used = True
            return lease
        return self._add(lease)

    def give(self, lease: Lease) -> None:
        """A session is not used any more, and kept."""
        self._turn += 1
        lease.used, lease.turn = False, self._turn

    def drop(self, lease: Lease) -> None:
        """A session whose caches nobody knows is not kept."""
        self._leases.remove(lease)

    def _idle(self) -> list[Lease]:
        return [each for each in self._leases if not each.used]

    def _add(self, origin: Lease | None) -> Lease:
        idle = sorted(self._idle(), key=lambda each: each.turn)
        while len(self._leases) >= self._size and idle:
            oldest = idle.pop(0)
            if oldest is not origin:
                self._leases.remove(oldest)
        session = self._new(self._program) if origin is None else origin.session.fork()
        self._leases.append(Lease(session))
        return self._leases[-1]
