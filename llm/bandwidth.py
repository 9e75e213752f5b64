"""The tokens a second that the memory's bandwidth allows: a token reads weights, and the keys and values before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etcuda.llm.cache import LayerCache


@dataclasses.dataclass(frozen=True)
class CacheReads:
    """What a token reads of the caches.

    Attributes:
        groups: of the layers that read the same tokens: the bytes of one token's keys and values in all of them, and
            how many tokens they read at most, 0 for all.
    """

    groups: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, layers: Iterable[LayerCache], itemsize: int, state_bytes: int = 0) -> CacheReads:
        """Of a model's caches, whose numbers have ``itemsize`` bytes, and ``state_bytes`` wherever a token stands."""
        found = {1: state_bytes} if state_bytes else {}
        for each in layers:
            most = each.length if each.is_ring and each.reads_mask else each.window or 0
            found[most] = found.get(most, 0) + each.slot_bytes(itemsize)
        return cls(tuple((nbytes, most) for most, nbytes in sorted(found.items())))

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> CacheReads:
        """Of what ``numbers`` gives; none of no numbers."""
        return cls(tuple(zip(numbers[::2], numbers[1::2], strict=True)))

    def numbers(self) -> list[int]:
        """The groups in one list, as the constant method ``get_cache_reads`` has them."""
        return [number for group in self.groups for number in group]

    def behind(self, tokens: float) -> float:
        """Bytes that a token reads behind ``tokens`` others, its own among them."""
        return sum(nbytes * (min(tokens + 1, most) if most else tokens + 1) for nbytes, most in self.groups)


def token_limit(bandwidth: float, weight_bytes: int, reads: CacheReads, tokens: float) -> float:
    """Tokens a second at which their reads take the bandwidth, in bytes a second, behind ``tokens`` others; 0 where
    the bandwidth or what is read is not known."""
    return bandwidth / (weight_bytes + reads.behind(tokens)) if bandwidth and weight_bytes else 0.0
