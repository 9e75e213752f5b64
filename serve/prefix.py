"""Which replica has seen the beginning of a conversation."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Collection, Sequence

_BLOCK = 64
# Of a conversation that goes on, nearly all was seen; of one that begins, at most what all have in common.
_OF_ITS_OWN = 0.5


def prefix_keys(text: str) -> tuple[bytes, ...]:
    """A key for the first 64 characters, the first 128 and so on: equal keys, equal prefixes."""
    digest, keys = hashlib.blake2b(digest_size=16), []
    for end in range(_BLOCK, len(text) + 1, _BLOCK):
        digest.update(text[end - _BLOCK : end].encode("utf-8", "surrogatepass"))
        keys.append(digest.digest())
    return tuple(keys)


class PrefixTable:
    """Prefixes and the replica that had each last. The ones that were not used for the longest time go.

    Args:
        size: most prefixes.
    """

    def __init__(self, size: int = 1 << 16) -> None:
        self._size = size
        self._replicas: collections.OrderedDict[bytes, str] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def note(self, keys: Sequence[bytes], replica: str) -> None:
        """A replica is given a prompt with these keys."""
        for key in keys:
            self._replicas[key] = replica
            self._replicas.move_to_end(key)
        while len(self._replicas) > self._size:
            self._replicas.popitem(last=False)

    def find(self, keys: Sequence[bytes], replicas: Collection[str]) -> str | None:
        """The one of these replicas that has a conversation's longest prefix, if that is most of the conversation."""
        for place in range(len(keys), 0, -1):
            replica = self._replicas.get(keys[place - 1])
            if replica in replicas:
                return replica if place >= _OF_ITS_OWN * len(keys) else None
        return None
