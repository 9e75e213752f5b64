"""Checks of the rotary kernel: test_rotary.py runs them in Triton's interpreter, tests/gpu on a GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import etcuda.kernels  # noqa: F401  registers the operator
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts fp32 off to bfloat16 where a GPU rounds.
DTYPES = (torch.float16, torch.bfloat16, torch.float32) if DEVICE == "cuda" else (torch.float16, torch.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: sizes, and how heads are rotated."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 16
    length: int = 3
    batch: int = 1
    places: int = 9
    interleaved: bool = False
    wide: bool = False
    normed: bool = False
    weights: bool = True
    by_batch: bool = False
    dtype: torch.dtype = torch.float16

    def arguments(self) -> dict[str, Any]:
        """The operator's arguments; heads are views of one product, caches hold numbers already."""
        random = torch.Generator().manual_seed(self.head_dim + self.length)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random).to(self.dtype).to(DEVICE)

        counts = [self.heads, self.kv_heads, self.kv_heads]
        product = numbers(self.batch, self.length, sum(counts) * self.head_dim)
        parts = product.split([count * self.head_dim for count in counts], -1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        columns = self.rotary_dim if self.wide else self.rotary_dim // 2
        rows = (self.batch, self.length) if self.by_batch else (self.length,)
        cos, sin = (torch.randn(*rows, columns, generator=random).to(DEVICE) for _ in range(2))
        weights = [numbers(self.head_dim) if self.normed and self.weights else None for _ in range(2)]
        return {
            "q": q, "k": k, "v": v, "cos": cos, "sin": sin,
            "positions": torch.randperm(self.places, generator=random)[: self.length].to(DEVICE),
            "k_cache": numbers(self.batch, self.kv_heads, self.places, self.head_dim),
            "v_cache": numbers(self.batch, self.kv_heads, self.places, self.head_dim),
            "q_weight": weights[0], "k_weight": weights[1], "eps": 1e-5 if self.normed else 0.0,
            "weight_offset": 1.0 if self.normed else 0.0, "rotary_dim": self.rotary_dim,
            "interleaved": self.interleaved, "consecutive": False, "heads": 1, "num_warps": 1, "pdl": 0,
        }  # fmt: skip


CASES = [
    Case(),
    Case(head_dim=24, rotary_dim=10, length=5),
    Case(interleaved=True, head_dim=20, rotary_dim=6, batch=2),
    Case(interleaved=True, wide=True, by_batch=True, batch=2),
    Case(wide=True, normed=True, head_dim=40, rotary_dim=40, heads=3, kv_heads=1),
    Case(normed=True, weights=False, length=1, heads=5, kv_heads=5),
    Case(normed=True, interleaved=True, head_dim=12, rotary_dim=8, batch=2, by_batch=True),
    Case(head_dim=128, rotary_dim=2, length=1),
]


def expected(given: dict[str, Any]) -> list[Tensor]:
    """In double precision, number by number: queries, keys and values."""
    places = given["positions"].tolist()
    if given["consecutive"]:
        places = range(places[0], places[0] + given["q"].shape[2])
    turned = [_turned(given, given[name], given[f"{name}_weight"]) for name in ("q", "k")]
    caches = [given[name].double().clone() for name in ("k_cache", "v_cache")]
    for cache, rows in zip(caches, (turned[1], given["v"].double()), strict=True):
        for token, place in enumerate(places):
            if -cache.shape[2] <= place < cache.shape[2]:
                cache[:, :, place] = rows[:, :, token]
    return [turned[0], *caches]


def _turned(given: dict[str, Any], x: Tensor, weight: Tensor | None) -> Tensor:
    x = x.double()
    if given["eps"]:
        x = x / (x.square().mean(-1, keepdim=True) + given["eps"]).sqrt()
        x = x if weight is None else x * (weight.double() + given["weight_offset"])
    width, result = given["rotary_dim"], x.clone()
    for place in range(width):
        is_first = place % 2 == 0 if given["interleaved"] else place < width // 2
        step = 1 if given["interleaved"] else width // 2
        other = place + step if is_first else place - step
        column = place
        if given["cos"].shape[-1] != width:
            column = place // 2 if given["interleaved"] else place % (width // 2)
        cos, sin = (given[name].double()[..., column].reshape(-1, 1, x.shape[2]) for name in ("cos", "sin"))
        result[..., place] = x[..., place] * cos + (-1 if is_first else 1) * x[..., other] * sin
    return result


def check(given: dict[str, Any]) -> None:
    """Asserts that the operator computes what is expected, and leaves the rest of the caches as it was."""
    results = torch.ops.etcuda.rotary_cache(**given)
    wanted = expected(given)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}[given["q"].dtype]
    for got, one in zip(results, wanted, strict=True):
        assert got.dtype == given["q"].dtype
        assert got.is_contiguous()
        torch.testing.assert_close(got.double(), one, rtol=tolerance, atol=tolerance)
    for got, name, rows in ((results[1], "k_cache", "k"), (results[2], "v_cache", "v")):
        written = (got != given[name]).any(-1).any(1).sum()
        assert int(written) <= given[rows].shape[2] * given[rows].shape[0]


class RotaryChecks(Poisoned):
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_rotations(self, case: Case, dtype: torch.dtype) -> None:
        check(dataclasses.replace(case, dtype=dtype).arguments())

    @pytest.mark.parametrize(("heads", "num_warps"), [(2, 1), (8, 4)])
    def test_several_heads_in_a_cta(self, heads: int, num_warps: int) -> None:
        check(Case(heads=5, kv_heads=3, normed=True).arguments() | {"heads": heads, "num_warps": num_warps})

    @pytest.mark.parametrize("start", [0, 4, -5, -2])
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
    def test_places_that_follow_each_other(self, start: int, dtype: torch.dtype) -> None:
        given = Case(batch=2).arguments()
        check(given | {"positions": torch.tensor([start], dtype=dtype, device=DEVICE), "consecutive": True})

    def test_nothing_is_written_outside_of_the_caches(self) -> None:
        given = Case().arguments()
        check(given | {"positions": torch.tensor([9, -10, 1 << 40], device=DEVICE)})
        check(given | {"positions": torch.tensor([7], device=DEVICE), "consecutive": True})

    def test_tables_of_one_row(self) -> None:
        given = Case(batch=2).arguments()
        row = {name: given[name][:1].expand(3, -1) for name in ("cos", "sin")}
        check(given | row)
        results = torch.ops.etcuda.rotary_cache(**given | {name: table[:1] for name, table in row.items()})
        torch.testing.assert_close(results, torch.ops.etcuda.rotary_cache(**given | row), rtol=0, atol=0)

    def test_tables_in_any_layout(self) -> None:
        given = Case().arguments()
        pairs = torch.stack((given["cos"], given["sin"]), -1)
        check(given | {"cos": pairs[..., 0], "sin": pairs[..., 1]})

    def test_heads_that_are_not_dense(self) -> None:
        given = Case().arguments()
        strided = {name: torch.stack((given[name], given[name]), -1)[..., 0] for name in ("q", "k", "v")}
        assert strided["q"].stride(-1) == 2
        check(given | strided)

    def test_no_tokens(self) -> None:
        given = Case(length=0).arguments()
        results = torch.ops.etcuda.rotary_cache(**given)
        assert results[0].shape == (1, 4, 0, 16)
        assert torch.equal(results[1], given["k_cache"])
        assert torch.equal(results[2], given["v_cache"])
