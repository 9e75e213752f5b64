"""Checks of the kernels of quantised weights: test_kernels.py runs them in the interpreter, tests/gpu on a GPU."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from etcuda.kernels.activations.quantize_op import quantize_activation
from etcuda.kernels.activations.reference import quantize_activation_reference, reorder_activation_reference
from etcuda.kernels.activations.reorder_launch import reorder
from etcuda.kernels.activations.reorder_op import reorder_activation
from etcuda.kernels.formats.registry import find
from etcuda.kernels.linear.choose.configs import MatmulLaunch, MatvecLaunch, padded
from tests.exhaustive import pairs
from tests.kernels.linear.linear_cases import (
    DEVICE,
    DTYPES,
    TOLERANCE,
    Case,
    Weight,
    activations,
    compare_reordered,
    error,
    make,
    rounded,
)
from tests.kernels.linear.linear_cases import (
    poison as poison,  # The fixture.
)

WARPS = 4 if DEVICE == "cuda" else 1
BLOCK_N = 64 if DEVICE == "cuda" else 16

FORMATS = [
    *(Case(group_size=group) for group in (32, 64, 128, 256)),
    Case(offset="symmetric"),
    Case(offset="minimum"),
    Case(offset="minimum", group_size=256),
    Case(storage="fp32", offset="minimum", group_size=64),
    Case(storage="codes", offset="symmetric", group_size=128),
    Case(storage="codes", offset="minimum"),
    Case("int8", offset="symmetric"),
    Case("int8", offset="symmetric", group_size=16),
    Case("int8", offset="symmetric", group_size=16, storage="codes"),
    Case("int8", offset="symmetric", group_size=160, k=160),
    Case("int8", offset="symmetric", group_size=128, storage="fp32"),
    Case("int8", offset="minimum", storage="codes"),
]


def resident(
    weight: Weight, x: Tensor, stages: int = 1, block_n: int = 4, ctas: int = 2, activation: str = "none"
) -> Tensor:
    blocks = max(padded(x.shape[-1] // 32), 32 * WARPS if DEVICE == "cuda" else 1)
    how = MatvecLaunch(False, padded(x.shape[0]), ctas, block_n, blocks, WARPS, stages, 0)
    return matvec(weight, x, how, activation)


def stepped(
    weight: Weight, x: Tensor, stages: int = 1, block_n: int = 4, blocks: int = 4, activation: str = "none"
) -> Tensor:
    blocks = blocks if DEVICE == "cpu" else 32
    return matvec(weight, x, MatvecLaunch(False, padded(x.shape[0]), 0, block_n, blocks, 1, stages, 0), activation)


def stepped_quantized(weight: Weight, x: Tensor, block_n: int = 4, blocks: int = 4, activation: str = "none") -> Tensor:
    blocks = blocks if DEVICE == "cpu" else 32
    how = MatvecLaunch(True, padded(x.shape[0]), 0, block_n, blocks, 1, 1, 0)
    op = find(weight.format.name).matvec_quantized_op
    result: Tensor = op(*quantize_activation(x), *_arguments(weight), x.dtype, *how.to_args(), activation)
    return result


def matvec(weight: Weight, x: Tensor, how: MatvecLaunch, activation: str = "none") -> Tensor:
    result: Tensor = find(weight.format.name).matvec_op(x, *_arguments(weight), *how.to_args(), activation)
    return result


def tiles(block_m: int = 16, ctas: int = 0, blocks: int = 4) -> MatmulLaunch:
    return MatmulLaunch(BLOCK_N, block_m, blocks, 4, 2, ctas, 0, 0, 0)


def matmul(weight: Weight, x: Tensor, activation_dtype: str = "int8", how: MatmulLaunch | None = None) -> Tensor:
    op = find(weight.format.name).matmul_op
    result: Tensor = op(x, *_arguments(weight), activation_dtype, *(how or tiles()).to_args())
    return result


def _arguments(weight: Weight) -> tuple[Any, ...]:
    return *weight.stored, weight.bias, weight.format.group_size


def _rows(weight: Weight, rows: slice) -> Any:
    return tuple(None if part is None else part[rows] for part in weight.stored)


_ACTIVATIONS: dict[str, Any] = {
    "silu": F.silu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "gelu_erf": F.gelu,
}


class TestLinearKernels:
    @pytest.mark.parametrize("case", FORMATS, ids=str)
    def test_every_format_by_every_kernel(self, case: Case) -> None:
        weight = make(case)
        x = activations(3, case.k, torch.float16)
        expected = weight.product(rounded(x))
        tolerance = TOLERANCE[torch.float16]
        assert error(resident(weight, x), expected) < tolerance
        assert error(stepped(weight, x), expected) < tolerance
        assert error(stepped_quantized(weight, x), expected) < tolerance
        assert error(matmul(weight, x, "int8"), expected) < tolerance
        assert error(matmul(weight, x, "exact"), weight.product(x)) < tolerance

    @pytest.mark.parametrize("case", [Case(n=26), Case("int8", offset="symmetric", n=26, bias=True)], ids=str)
    @pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
    def test_a_gate_at_the_end_computes_what_one_behind_does(self, case: Case, activation: str) -> None:
        weight = make(case)
        for m, kernel in itertools.product((1, 3), (resident, stepped, stepped_quantized)):
            x = activations(m, case.k, torch.bfloat16)
            both = kernel(weight, x)
            gate, up = both.float().chunk(2, -1)
            got = kernel(weight, x, activation=activation)
            assert got.shape == (m, case.n // 2)
            assert got.dtype == torch.bfloat16
            wanted = _ACTIVATIONS[activation](gate).to(got.dtype).float() * up
            # Rounded twice more, by the interpreter towards zero.
            assert error(got, wanted) < 2 * TOLERANCE[torch.bfloat16]
            first = kernel(weight, x[:1], activation=activation)
            assert torch.equal(first, kernel(weight, x[:1], activation=activation))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("m", [1, 2, 7, 8])
    def test_dtypes_and_rows(self, dtype: torch.dtype, m: int) -> None:
        case = Case(k=160)
        weight = make(case, dtype)
        x = activations(m, case.k, dtype)
        expected = weight.product(rounded(x))
        calls = [stepped_quantized(weight, x), matmul(weight, x)]
        if dtype != torch.float32:
            calls += [resident(weight, x), stepped(weight, x), resident(weight, x, stages=2)]
        for got in calls:
            assert got.dtype == dtype
            assert error(got, expected) < TOLERANCE[dtype]

    @pytest.mark.parametrize("format_name", ["int4", "int8"])
    @pytest.mark.parametrize(("m", "ctas"), [(1, 3), (9, 0), (17, 1), (17, 7), (17, 64)])
    def test_tiles_shared_by_ctas(self, format_name: str, m: int, ctas: int) -> None:
        case = Case(format_name, n=19 if DEVICE == "cpu" else 131, k=288, offset="symmetric", bias=m == 9)
        weight = make(case)
        x = activations(m, case.k, torch.float16)
        got = matmul(weight, x, "exact", tiles(ctas=ctas))
        assert error(got, weight.product(x)) < TOLERANCE[torch.float16]

    @pytest.mark.parametrize(
        ("m", "ctas", "format_name", "activation_dtype"),
        pairs([(0, 0), (5, 3), (17, 0), (33, 7)], ["int4", "int8"], ["int8", "exact"]),
    )
    def test_activations_reordered_before_give_the_same_bits(
        self, m: int, ctas: int, format_name: str, activation_dtype: str
    ) -> None:
        case = Case(format_name, k=288, offset="symmetric")
        weight = make(case)
        x = activations(m, case.k, torch.float16)
        # For a product with higher tiles, whose rows beyond M hold anything.
        reordered, factor, semaphores = reorder_activation(x, case.bits, activation_dtype, 64, 0, 0)
        assert (reordered.shape, factor.shape) == ((64, 384), (m,))
        reordered[m:] = float("nan")
        how = tiles(ctas=ctas)
        op = find(format_name).matmul_reordered_op
        got = op(reordered, factor, semaphores, *_arguments(weight), x.dtype, activation_dtype, *how.to_args())
        assert got.shape == (m, case.n)
        assert torch.equal(got, matmul(weight, x, activation_dtype, how))

    @pytest.mark.parametrize(("dtype", "bits", "activation_dtype"), pairs(DTYPES, [4, 8], ["int8", "exact"]), ids=str)
    def test_reordering(self, dtype: torch.dtype, bits: int, activation_dtype: str) -> None:
        x = activations(5, 160, dtype)
        x[3] = 0
        reordered, factor, _ = reorder(bits, x, activation_dtype, 16, 0, 0)
        expected, divided_by, _ = reorder_activation_reference(x.cpu(), bits, activation_dtype, 16)
        assert (reordered.shape, expected.shape) == ((16, 256), (16, 256))
        assert torch.equal(factor.cpu(), divided_by)
        compare_reordered(reordered[:5].cpu(), expected[:5], activation_dtype == "exact" or DEVICE == "cpu")

    @pytest.mark.parametrize(("k", "blocks"), [(32, 4), (96, 8), (160, 4), (416, 8)])
    def test_steps_that_do_not_divide_k(self, k: int, blocks: int) -> None:
        weight = make(Case(k=k))
        x = activations(2, k, torch.float16)
        got = matmul(weight, x, "exact", tiles(ctas=3, blocks=blocks))
        assert error(got, weight.product(x)) < TOLERANCE[torch.float16]
        assert error(stepped(weight, x, blocks=blocks), weight.product(rounded(x))) < TOLERANCE[torch.float16]

    @pytest.mark.parametrize("n", [1, 4, 5, 16])
    def test_few_rows_of_the_weight(self, n: int) -> None:
        weight = make(Case(n=n))
        x = activations(1, 256, torch.float16)
        expected = weight.product(rounded(x))
        for got in (resident(weight, x, ctas=5), stepped(weight, x), matmul(weight, x, how=tiles(ctas=2))):
            assert got.shape == (1, n)
            assert error(got, expected) < TOLERANCE[torch.float16]

    def test_kernels_of_integer_products_agree_to_the_bit(self) -> None:
        weight = make(Case(n=16, k=288))
        x = activations(4, 288, torch.float16)
        first = stepped(weight, x, block_n=4)
        assert torch.equal(first, stepped(weight, x, block_n=8))
        assert torch.equal(first, stepped_quantized(weight, x))
        # A row does not depend on those beside it, nor on how weights are concatenated.
        assert torch.equal(first[2:3], stepped(weight, x[2:3].contiguous()))
        upper = dataclasses.replace(weight, stored=_rows(weight, slice(4, 16)), bias=weight.bias[4:])  # type: ignore[index]
        assert torch.equal(first[:, 4:], stepped(upper, x))

    def test_leading_sizes_strides_and_addresses(self) -> None:
        weight = make(Case(n=8, bias=False))
        wide = activations(6, 300, torch.float16)
        x = wide[:, 1:257].unflatten(0, (3, 2)).transpose(0, 1)
        got = stepped(weight, x[0])
        assert error(got, weight.product(rounded(x[0].contiguous()))) < TOLERANCE[torch.float16]
        odd = wide.flatten()[3:259]
        got = matvec(weight, odd, MatvecLaunch(False, 1, 0, 4, 32, 1, 1, 0))
        assert got.shape == (8,)
        assert error(got[None], weight.product(rounded(odd[None]))) < TOLERANCE[torch.float16]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_quantizing(self, dtype: torch.dtype) -> None:
        x = activations(5, 96, dtype)
        x[1, 0] = float("nan")
        x[2, :32] = 1e-38
        x[3, 32] = float("inf")
        q, scale, total = quantize_activation(x)
        expected = quantize_activation_reference(x.cpu())
        assert torch.equal(q.cpu()[[0, 2, 4]], expected[0][[0, 2, 4]])
        torch.testing.assert_close(scale.cpu(), expected[1], rtol=1e-6, atol=0, equal_nan=True)
        torch.testing.assert_close(total.cpu()[[0, 2, 4]], expected[2][[0, 2, 4]], rtol=1e-6, atol=0)
        assert scale[1, 0].isnan()
        assert not scale[1, 1:].isnan().any()
        assert scale[2, 0] == 0 or dtype != torch.float32

    @pytest.mark.parametrize("kernel", [resident, stepped, stepped_quantized, matmul])
    def test_nan_stays_in_its_row(self, kernel: Any) -> None:
        weight = make(Case(n=8))
        x = activations(3, 256, torch.float16)
        x[1, 40] = float("nan")
        got = kernel(weight, x)
        assert got[1].isnan().all()
        assert not got[0].isnan().any()
        assert not got[2].isnan().any()

    def test_a_whole_row_as_the_group(self) -> None:
        weight = make(Case("int8", n=4, k=544, group_size=544, offset="symmetric"))
        x = activations(1, 544, torch.float16)
        assert error(stepped(weight, x), weight.product(rounded(x))) < TOLERANCE[torch.float16]
