"""Checks of the products of few rows: test_dense.py runs them in Triton's interpreter, tests/gpu on a GPU."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import etcuda.kernels  # noqa: F401  registers the operator
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts fp32 off to bfloat16 where a GPU rounds.
DTYPES = (torch.float16, torch.bfloat16) if DEVICE == "cuda" else (torch.float16,)
# A rounding of each dtype, relative.
_ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}
_ACTIVATIONS = {
    "silu": functional.silu,
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: sizes, and how it is launched."""

    m: int = 1
    n: int = 13
    k: int = 72
    bias: bool = False
    activation: str = "none"
    ctas: int = 0
    block_n: int = 4
    block_k: int = 32
    num_warps: int = 1
    dtype: torch.dtype = torch.float16

    def arguments(self) -> dict[str, Any]:
        """The operator's arguments."""
        random = torch.Generator().manual_seed(self.m + self.n + self.k)
        rows = self.n * (1 if self.activation == "none" else 2)

        def numbers(*shape: int) -> Tensor:
            return (torch.randn(shape, generator=random) / math.sqrt(shape[-1])).to(self.dtype).to(DEVICE)

        return {
            "x": numbers(self.m, self.k) * math.sqrt(self.k), "weight": numbers(rows, self.k) * 2,
            "bias": numbers(rows) if self.bias else None, "activation": self.activation,
            "tokens": 1 << max(self.m - 1, 0).bit_length(), "ctas": self.ctas, "block_n": self.block_n,
            "block_k": self.block_k, "num_warps": self.num_warps, "pdl": 0,
        }  # fmt: skip


CASES = [
    *(Case(m=m, bias=m % 2 == 0) for m in range(1, 9)),
    Case(n=1, k=8, block_n=1, block_k=8),
    Case(m=3, n=5, k=136, block_n=8, block_k=64),
    Case(m=8, n=9, k=40, activation="silu", bias=True),
    Case(m=2, n=33, k=64, activation="gelu_erf"),
    Case(n=7, k=104, activation="gelu_tanh", block_n=2, block_k=128),
    Case(n=37, k=200, ctas=3, block_n=2, block_k=256),
    Case(m=2, n=37, k=200, ctas=30, block_n=4, block_k=256, bias=True),
    Case(n=10, k=56, ctas=2, block_n=1, block_k=64, activation="silu", bias=True),
]


def expected(given: dict[str, Any]) -> Tensor:
    """In double precision, from the formula."""
    product = given["x"].double() @ given["weight"].double().t()
    if given["bias"] is not None:
        product = product + given["bias"].double()
    if given["activation"] == "none":
        return product
    half = product.shape[-1] // 2
    return _ACTIVATIONS[given["activation"]](product[..., :half]) * product[..., half:]


def check(given: dict[str, Any]) -> Tensor:
    """Compares a call with the formula; returns its result."""
    got: Tensor = torch.ops.etcuda.dense_matvec(**given)
    wanted = expected(given)
    assert (got.shape, got.dtype) == (wanted.shape, given["x"].dtype)
    roundings = 1 if given["activation"] == "none" else 4
    error = float((got.double() - wanted).norm() / wanted.norm())
    assert error < roundings * _ROUNDING[got.dtype], f"relative error {error:.2e}"
    return got


class DenseChecks(Poisoned):
    @pytest.mark.parametrize("case", CASES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_formula(self, case: Case, dtype: torch.dtype) -> None:
        check(dataclasses.replace(case, dtype=dtype).arguments())

    def test_a_row_has_the_bits_that_it_has_alone(self) -> None:
        given = Case(n=24, k=200, ctas=2, block_n=2, block_k=256).arguments()
        for ctas, block_k in ((2, 256), (0, 32)):
            launch = {"ctas": ctas, "block_k": block_k}
            whole = check(given | launch)
            part = check(given | launch | {"weight": given["weight"][5:19].contiguous(), "block_n": 4})
            assert torch.equal(whole[:, 5:19], part)

    def test_rows_of_a_weight_and_a_batch(self) -> None:
        given = Case(m=6, n=16, k=64).arguments()
        rows = check(given | {"weight": given["weight"][8:]})
        batched = torch.ops.etcuda.dense_matvec(
            **given | {"x": given["x"].reshape(3, 2, 64).transpose(0, 1), "weight": given["weight"][8:]}
        )
        assert torch.equal(batched.transpose(0, 1).reshape(6, 8), rows)

    def test_no_tokens(self) -> None:
        given = Case().arguments()
        assert torch.ops.etcuda.dense_matvec(**given | {"x": given["x"][:0]}).shape == (0, 13)

    def test_what_is_not_finite_spoils_its_token_and_row_alone(self) -> None:
        given = Case(m=3, n=6).arguments()
        x, weight = given["x"].clone(), given["weight"].clone()
        x[1, 70] = math.inf
        weight[4, 0] = math.nan
        got = torch.ops.etcuda.dense_matvec(**given | {"x": x, "weight": weight})
        bad = ~got.isfinite()
        assert bad[1].all()
        assert bad[:, 4].all()
        bad[1] = bad[:, 4] = False
        assert not bad.any()
