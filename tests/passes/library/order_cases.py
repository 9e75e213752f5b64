"""Calls of sorts, scans, searches and reductions through indices, in every dtype, for the tests on each target.

Where torch leaves open which of equal elements an index points to, the call returns what it points to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (torch.bool, *INTEGERS, *FLOATS)
REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


@dataclasses.dataclass(frozen=True)
class Case:
    """A call, its inputs, and whether its result is a sum that rounding touches."""

    name: str
    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, special: bool = False) -> Tensor:
    """Small numbers, many of them equal; ``special``: a NaN, infinities and a negative zero among floats."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0 if dtype in (torch.bool, torch.uint8) else -6, 7, shape, generator=generator)
    if dtype == torch.bool:
        return x % 2 == 0
    if not dtype.is_floating_point:
        return x.to(dtype)
    found = x.div(4).to(dtype)
    if special and found.numel() > 8:
        flat = found.view(-1)
        flat[1], flat[3], flat[4], flat[5], flat[-2] = torch.nan, torch.inf, -torch.inf, -0.0, torch.nan
    return found


def _pointed(x: Tensor, pair: Any, dim: int, keepdim: bool = True) -> tuple[Tensor, Tensor]:
    values, indices = pair
    where = indices if keepdim or x.dim() == 0 else indices.unsqueeze(dim)
    return values, x if x.dim() == 0 else x.gather(dim, where)


def order_cases(dtype: torch.dtype, long: int = 1300) -> Iterator[Case]:
    """Sorts and selection, on dimensions of 7 and of ``long``."""
    few, many = numbers((3, 7), dtype, 0, True), numbers((2, long), dtype, 1, True)
    tall, none, one = numbers((long, 2), dtype, 2, True), numbers((0, 4), dtype), numbers((), dtype)
    for name, x, dim in (("few", few, 0), ("many", many, -1), ("tall", tall, 0), ("none", none, 1), ("one", one, 0)):
        for descending in (False, True):
            yield Case(
                f"sort {name}", lambda x, d=dim, r=descending: torch.sort(x, stable=True, dim=d, descending=r), (x,)
            )
            if dtype != torch.bool and name != "none":
                k = min(3, x.shape[dim]) if x.dim() else 1
                yield Case(
                    f"topk {name}", lambda x, d=dim, k=k, r=descending: _pointed(x, torch.topk(x, k, d, r), d), (x,)
                )
    yield Case("msort", lambda x: torch.msort(x.T), (few,))
    if dtype == torch.bool:
        return
    yield Case("topk, half", lambda x: _pointed(x, torch.topk(x, 600), -1), (many,))
    for keepdim in (False, True):
        for name, x, dim in (("few", few, 1), ("tall", tall, 0)):
            yield Case(
                f"kthvalue {name}", lambda x, d=dim, k=keepdim: _pointed(x, torch.kthvalue(x, 3, d, k), d, k), (x,)
            )
            yield Case(f"median {name}", lambda x, d=dim, k=keepdim: _pointed(x, torch.median(x, d, k), d, k), (x,))
            yield Case(
                f"nanmedian {name}", lambda x, d=dim, k=keepdim: _pointed(x, torch.nanmedian(x, d, k), d, k), (x,)
            )
            plain = numbers(tuple(x.shape), dtype, 3)
            yield Case(f"mode {name}", lambda x, d=dim, k=keepdim: _pointed(x, torch.mode(x, d, k), d, k), (plain,))
    yield Case("median of all", lambda x: (torch.median(x), torch.nanmedian(x)), (few,))


def scan_cases(dtype: torch.dtype, long: int = 5000) -> Iterator[Case]:
    """Cumulative operators, on dimensions of 7 and of ``long``."""
    for x, dim in ((numbers((3, 7), dtype), 0), (numbers((2, long), dtype), -1), (numbers((long, 2), dtype), 0)):
        small = torch.cat([x.narrow(dim, 0, 3), torch.ones_like(x).narrow(dim, 3, x.shape[dim] - 3)], dim)
        # 16-bit sums of thousands are another matter: float32 is what is summed in.
        summed = x if dtype not in (torch.float16, torch.bfloat16) else x.narrow(dim, 0, min(7, x.shape[dim]))
        yield Case("cumsum", lambda x, d=dim: torch.cumsum(x, d), (summed,))
        yield Case("cumprod", lambda x, d=dim: torch.cumprod(x, d), (small,))
        if dtype.is_floating_point:
            yield Case("logcumsumexp", lambda x, d=dim: torch.logcumsumexp(x, d), (summed,))
        special = numbers(tuple(x.shape), dtype, 1, True)
        yield Case("cummax", lambda x, d=dim: torch.cummax(x, d), (special,))
        yield Case("cummin", lambda x, d=dim: torch.cummin(x, d), (special,))
    for x in (numbers((0, 4), dtype), numbers((), dtype)):
        yield Case("cumsum, no dimension", lambda x: (torch.cumsum(x, 0), *torch.cummax(x, 0)), (x,))
    yield Case("cumsum to int32", lambda x: torch.cumsum(x, 0, dtype=torch.int32), (numbers((4,), dtype),))


def search_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Binary search, and what is built on it."""
    if dtype == torch.bool:
        return
    rows = numbers((2, 9), dtype).sort(-1)[0]
    row = numbers((9,), dtype, 1).sort()[0]
    values, loose = numbers((2, 5), dtype, 2), numbers((2, 9), dtype, 3)
    for right in (False, True):
        yield Case("searchsorted rows", lambda s, v, r=right: torch.searchsorted(s, v, right=r), (rows, values))
        yield Case("bucketize", lambda s, v, r=right: torch.bucketize(v, s, right=r, out_int32=True), (row, values))
    yield Case("searchsorted right", lambda s, v: torch.searchsorted(s, v, side="right"), (row, values))
    yield Case("searchsorted none", torch.searchsorted, (row[:0], values))
    yield Case(
        "searchsorted sorter", lambda s, v, o: torch.searchsorted(s, v, sorter=o), (loose, values, loose.argsort(-1))
    )
    yield Case("searchsorted number", lambda s: (torch.searchsorted(s, 1), torch.bucketize(1, s)), (row,))
    x = numbers((3, 4), dtype)
    yield Case("nonzero_static", lambda x: (_nonzero(x, 5, -1), _nonzero(x, 20, 7)), (x,))
    mask = numbers((3, 4), torch.bool, 2)
    yield Case("masked_scatter", torch.masked_scatter, (x, mask, numbers((12,), dtype, 4)))
    if dtype in (torch.int32, torch.int64):
        repeats = torch.tensor([2, 0, 5], dtype=dtype)
        yield Case("repeat_interleave", lambda x, r: torch.repeat_interleave(x, r, dim=0, output_size=7), (x, repeats))
    if dtype in (torch.float32, torch.float64):
        x = numbers((40,), dtype, 5)
        yield Case("histc", lambda x: (torch.histc(x, 7, -1, 1), torch.histc(x, 5)), (x,))
        yield Case("histc of one value", lambda x: torch.histc(x, 5), (torch.ones(3, dtype=dtype),))


def _nonzero(x: Tensor, size: int, fill: int) -> Tensor:
    found: Tensor = aten.nonzero_static(x, size=size, fill_value=fill)
    return found


def scatter_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Reductions through indices; products of few, which no 16-bit float overflows in."""
    generator = torch.Generator().manual_seed(0)
    for shape, reached, dim in (((4, 3), (6, 3), 0), ((4, 5), (3, 2), 1), ((3, 4), (0, 4), 0), ((), (), 0)):
        x, src = numbers(shape, dtype), numbers(tuple(size + 1 for size in reached), dtype, 1)
        index = torch.randint(0, shape[dim] if shape else 1, reached, generator=generator)
        for reduce in REDUCTIONS:
            if dtype == torch.bool and reduce == "mean":
                continue
            for include_self in (True, False):
                yield Case(
                    f"scatter_reduce {reduce} {shape}",
                    lambda x, i, s, d=dim, r=reduce, o=include_self: torch.scatter_reduce(
                        x, d, i, s, r, include_self=o
                    ),
                    (x, index, src),
                )
    x, src, index = numbers((4, 3), dtype), numbers((5, 3), dtype, 1), torch.tensor([0, 3, 3, 1, 0])
    places = torch.tensor([[0, 1, 2], [2, 3, 0]])
    yield Case("scatter", lambda x, i, s: torch.scatter(x, 0, i, s), (x, places, src))
    yield Case("scatter_add", lambda x, i, s: torch.scatter_add(x, 0, i, s), (x, places, src))
    yield Case("index_add", lambda x, i, s: torch.index_add(x, 0, i, s), (x, index, src))
    yield Case("index_put", lambda x, i, s: torch.index_put(x, (i,), s, accumulate=True), (x, index, src))
    yield Case("index_add along 1", lambda x, i, s: torch.index_add(x.T, 1, i, s.T), (x, index, src))
    if dtype in (torch.uint8, torch.int8):
        yield Case("cat", lambda x, s: torch.cat([x, s]), (x, src))
    if dtype == torch.bool:
        return
    yield Case("scatter add", lambda x, i: torch.scatter(x, 0, i, 2, reduce="add"), (x, places))
    yield Case("scatter multiply", lambda x, i, s: torch.scatter(x, 0, i, s, reduce="multiply"), (x, places, src))
    for reduce in REDUCTIONS[1:]:
        for include_self in (True, False):
            yield Case(
                f"index_reduce {reduce}",
                lambda x, i, s, r=reduce, o=include_self: torch.index_reduce(x, 0, i, s, r, include_self=o),
                (x, index, src),
            )
    if dtype.is_floating_point:
        x, src = numbers((4, 3), dtype, 0, True), numbers((5, 3), dtype, 1, True)
        each = index[:, None].expand(5, 3).contiguous()
        for reduce in ("amax", "amin"):
            yield Case(f"NaN {reduce}", lambda x, i, s, r=reduce: torch.scatter_reduce(x, 0, i, s, r), (x, each, src))


def bag_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Bags of rows of a table."""
    if not dtype.is_floating_point:
        return
    table, weights = numbers((9, 4), dtype), numbers((11,), dtype, 1)
    indices = torch.randint(0, 9, (11,), generator=torch.Generator().manual_seed(1))
    offsets = torch.tensor([0, 3, 3, 8])
    for mode in ("sum", "mean", "max"):

        def bag(w: Tensor, i: Tensor, o: Tensor | None = None, m: str = mode, **options: Any) -> Tensor:
            return F.embedding_bag(i, w, o, mode=m, **options)

        yield Case(f"bag {mode}", bag, (table, indices, offsets))
        yield Case(f"bag {mode}, int32", bag, (table, indices.int(), offsets.int()))
        yield Case(f"bag {mode}, equal", bag, (table, indices[:10].reshape(2, 5)))
        padded = lambda w, i, o, b=bag: b(w, i, o, padding_idx=3)  # noqa: E731
        yield Case(f"bag {mode}, padding", padded, (table, indices, offsets))
        ended = lambda w, i, o, b=bag: b(w, i, o, include_last_offset=True)  # noqa: E731
        yield Case(f"bag {mode}, last", ended, (table, indices, torch.tensor([0, 3, 3, 8, 11])))
    yield Case(
        "bag weighted",
        lambda w, i, o, p: F.embedding_bag(i, w, o, mode="sum", per_sample_weights=p),
        (table, indices, offsets, weights),
    )


FAMILIES: dict[str, Callable[[torch.dtype], Iterator[Case]]] = {
    "bag": bag_cases,
    "order": order_cases,
    "scan": scan_cases,
    "scatter": scatter_cases,
    "search": search_cases,
}


class AllOf(torch.nn.Module):
    """Every call of a list of cases, on inputs that come one after another."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """All results, one after another."""
        results: list[Tensor] = []
        place = 0
        for case in self.cases:
            found = case.call(*inputs[place : place + len(case.inputs)])
            place += len(case.inputs)
            results += [found] if isinstance(found, Tensor) else list(found)
        return results

    def inputs(self) -> tuple[Tensor, ...]:
        """What to call it with; clones, for an input that occurs twice would be one placeholder."""
        return tuple(value.clone() for case in self.cases for value in case.inputs)

    def names(self) -> list[str]:
        """The case of every result."""
        found = []
        for case in self.cases:
            result = case.call(*case.inputs)
            found += [case.name] * (1 if isinstance(result, Tensor) else len(result))
        return found

    def check(self, got: list[Tensor]) -> None:
        """Compares results with eager, name by name."""
        for name, ours, expected in zip(self.names(), got, self(*self.inputs()), strict=True):
            tolerance = 2e-2 if expected.dtype in (torch.float16, torch.bfloat16) else None
            torch.testing.assert_close(
                ours,
                expected,
                rtol=tolerance,
                atol=tolerance,
                equal_nan=True,
                msg=lambda text, name=name, dtype=expected.dtype: f"{name} of {dtype}: {text}",
            )
