"""Checks of the kernels of int4 and int8 weights.

test_linear_kernels.py runs them in the interpreter, tests/gpu on a GPU.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from etcuda.kernels.activations.quantize_op import quantize_activation
from etcuda.kernels.activations.reference import quantize_activation_reference, reorder_activation_reference
from etcuda.kernels.activations.reorder_op import reorder_activation
from etcuda.kernels.linear import launch
from etcuda.kernels.linear.op import (
    int4_matmul,
    int4_matmul_reordered,
    int4_matvec,
    int4_matvec_quantized,
    int8_matmul,
    int8_matmul_reordered,
    int8_matvec,
    int8_matvec_quantized,
)
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

MATVEC = {4: int4_matvec, 8: int8_matvec}
ROUNDED = {4: int4_matvec_quantized, 8: int8_matvec_quantized}
MATMUL = {4: int4_matmul, 8: int8_matmul}
ORDERED = {4: int4_matmul_reordered, 8: int8_matmul_reordered}
WARPS = 4 if DEVICE == "cuda" else 1

FORMATS = [
    *(Case(group_size=group) for group in (32, 64, 128, 256)),
    Case(offset="symmetric"),
    Case(offset="minimum"),
    Case(offset="minimum", group_size=256),
    Case(storage="fp32", offset="minimum", group_size=64),
    Case(storage="codes", offset="symmetric", group_size=128),
    Case(storage="codes", offset="minimum"),
    Case(bits=8, offset="symmetric"),
    Case(bits=8, offset="symmetric", group_size=16),
    Case(bits=8, offset="symmetric", group_size=16, storage="codes"),
    Case(bits=8, offset="symmetric", group_size=160, k=160),
    Case(bits=8, offset="symmetric", group_size=128, storage="fp32"),
    Case(bits=8, offset="minimum", storage="codes"),
]
NAMES = [f"{c.bits}-{c.storage}-{c.offset}-{c.group_size}-{c.k}" for c in FORMATS]


def padded(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def resident(weight: Weight, bits: int, x: Tensor, stages: int = 1, block_n: int = 4, ctas: int = 2) -> Tensor:
    blocks = max(padded(x.shape[-1] // 32), 32 * WARPS if DEVICE == "cuda" else 1)
    config = (padded(x.shape[0]), ctas, block_n, blocks, WARPS, stages, 0)
    return _call(MATVEC[bits], x, weight, config)


def stepped(weight: Weight, bits: int, x: Tensor, stages: int = 1, block_n: int = 4, blocks: int = 4) -> Tensor:
    blocks = blocks if DEVICE == "cpu" else 32
    return _call(MATVEC[bits], x, weight, (padded(x.shape[0]), 0, block_n, blocks, 1, stages, 0))


def stepped_quantized(weight: Weight, bits: int, x: Tensor, block_n: int = 4, blocks: int = 4) -> Tensor:
    blocks = blocks if DEVICE == "cpu" else 32
    config = (x.dtype, padded(x.shape[0]), block_n, blocks, 1, 1, 0)
    result: Tensor = ROUNDED[bits](
        *quantize_activation(x), *weight.stored, weight.bias, weight.form.group_size, *config
    )  # fmt: skip
    return result


def matmul(
    weight: Weight,
    bits: int,
    x: Tensor,
    activation: str = "int8",
    ctas: int = 0,
    block_m: int = 16,
    blocks: int = 4,
) -> Tensor:
    block_n = 64 if DEVICE == "cuda" else 16
    return _call(MATMUL[bits], x, weight, (activation, block_n, block_m, blocks, 4, 2, ctas, 0, 0, 0))


def _call(operator: Any, x: Tensor, weight: Weight, config: tuple[Any, ...]) -> Tensor:
    result: Tensor = operator(x, *weight.stored, weight.bias, weight.form.group_size, *config)
    return result


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is not a number."""
    plain = Tensor.new_empty

    def new_empty(self: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        made = plain(self, *arguments, **keywords)
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(77)

    monkeypatch.setattr(Tensor, "new_empty", new_empty)


@pytest.mark.parametrize("case", FORMATS, ids=NAMES)
def test_every_format_by_every_kernel(case: Case) -> None:
    weight = make(case)
    x = activations(3, case.k, torch.float16)
    expected = weight.product(rounded(x))
    tolerance = TOLERANCE[torch.float16]
    assert error(resident(weight, case.bits, x), expected) < tolerance
    assert error(stepped(weight, case.bits, x), expected) < tolerance
    assert error(stepped_quantized(weight, case.bits, x), expected) < tolerance
    assert error(matmul(weight, case.bits, x, "int8"), expected) < tolerance
    assert error(matmul(weight, case.bits, x, "exact"), weight.product(x)) < tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 2, 7, 8])
def test_dtypes_and_rows(dtype: torch.dtype, m: int) -> None:
    case = Case(k=160)
    weight = make(case, dtype)
    x = activations(m, case.k, dtype)
    expected = weight.product(rounded(x))
    calls = [stepped_quantized(weight, 4, x), matmul(weight, 4, x)]
    if dtype != torch.float32:
        calls += [resident(weight, 4, x), stepped(weight, 4, x), resident(weight, 4, x, stages=2)]
    for got in calls:
        assert got.dtype == dtype
        assert error(got, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("m", "programs"), [(1, 3), (9, 0), (17, 1), (17, 7), (17, 64)])
def test_tiles_shared_by_programs(bits: int, m: int, ctas: int) -> None:
    case = Case(bits=bits, n=19 if DEVICE == "cpu" else 131, k=288, offset="symmetric", bias=m == 9)
    weight = make(case)
    x = activations(m, case.k, torch.float16)
    got = matmul(weight, bits, x, "exact", ctas)
    assert error(got, weight.product(x)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("activation", ["int8", "exact"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("m", "programs"), [(0, 0), (5, 3), (17, 0), (33, 7)])
def test_activations_ordered_before_give_the_same_bits(m: int, ctas: int, bits: int, activation: str) -> None:
    case = Case(bits=bits, k=288, offset="symmetric")
    weight = make(case)
    x = activations(m, case.k, torch.float16)
    # In order for a product with higher tiles, whose rows beyond M hold anything.
    reordered, factor, semaphores = reorder_activation(x, bits, activation, 64, 0, 0)
    assert (reordered.shape, factor.shape) == ((64, 384), (m,))
    reordered[m:] = float("nan")
    config = (x.dtype, activation, 64 if DEVICE == "cuda" else 16, 16, 4, 4, 2, ctas, 0, 0, 0)
    got = ORDERED[bits](reordered, factor, semaphores, *weight.stored, weight.bias, weight.form.group_size, *config)
    assert got.shape == (m, case.n)
    assert torch.equal(got, matmul(weight, bits, x, activation, ctas))


@pytest.mark.parametrize("activation", ["int8", "exact"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order(dtype: torch.dtype, bits: int, activation: str) -> None:
    x = activations(5, 160, dtype)
    x[3] = 0
    reordered, factor, _ = launch.order(bits, x, activation, 16, 0, 0)
    expected, divided_by, _ = reorder_activation_reference(x.cpu(), bits, activation, 16)
    assert (reordered.shape, expected.shape) == ((16, 256), (16, 256))
    assert torch.equal(factor.cpu(), divided_by)
    compare_reordered(reordered[:5].cpu(), expected[:5], activation == "exact" or DEVICE == "cpu")


@pytest.mark.parametrize(("k", "blocks"), [(32, 4), (96, 8), (160, 4), (416, 8)])
def test_steps_that_do_not_divide_k(k: int, blocks: int) -> None:
    weight = make(Case(k=k))
    x = activations(2, k, torch.float16)
    assert error(matmul(weight, 4, x, "exact", 3, blocks=blocks), weight.product(x)) < TOLERANCE[torch.float16]
    assert error(stepped(weight, 4, x, blocks=blocks), weight.product(rounded(x))) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("n", [1, 4, 5, 16])
def test_few_rows_of_the_weight(n: int) -> None:
    weight = make(Case(n=n))
    x = activations(1, 256, torch.float16)
    expected = weight.product(rounded(x))
    for got in (resident(weight, 4, x, ctas=5), stepped(weight, 4, x), matmul(weight, 4, x, ctas=2)):
        assert got.shape == (1, n)
        assert error(got, expected) < TOLERANCE[torch.float16]


def test_kernels_of_integer_products_agree_to_the_bit() -> None:
    weight = make(Case(n=16, k=288))
    x = activations(4, 288, torch.float16)
    first = stepped(weight, 4, x, block_n=4)
    assert torch.equal(first, stepped(weight, 4, x, block_n=8))
    assert torch.equal(first, stepped_quantized(weight, 4, x))
    # A row does not depend on those beside it, nor on how weights are concatenated.
    assert torch.equal(first[2:3], stepped(weight, 4, x[2:3].contiguous()))
    upper = dataclasses.replace(weight, stored=_rows(weight, slice(4, 16)), bias=weight.bias[4:])  # type: ignore[index]
    assert torch.equal(first[:, 4:], stepped(upper, 4, x))


def _rows(weight: Weight, rows: slice) -> Any:
    return tuple(None if part is None else part[rows] for part in weight.stored)


def test_leading_sizes_strides_and_addresses() -> None:
    weight = make(Case(n=8, bias=False))
    wide = activations(6, 300, torch.float16)
    x = wide[:, 1:257].unflatten(0, (3, 2)).transpose(0, 1)
    got = stepped(weight, 4, x[0])
    assert error(got, weight.product(rounded(x[0].contiguous()))) < TOLERANCE[torch.float16]
    odd = wide.flatten()[3:259]
    config = (1, 0, 4, 32, 1, 1, 0)
    got = int4_matvec(odd, *weight.stored, None, 32, *config)
    assert got.shape == (8,)
    assert error(got[None], weight.product(rounded(odd[None]))) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding(dtype: torch.dtype) -> None:
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
def test_nan_stays_in_its_row(kernel: Any) -> None:
    weight = make(Case(n=8))
    x = activations(3, 256, torch.float16)
    x[1, 40] = float("nan")
    got = kernel(weight, 4, x)
    assert got[1].isnan().all()
    assert not got[0].isnan().any()
    assert not got[2].isnan().any()


def test_a_whole_row_as_the_group() -> None:
    weight = make(Case(bits=8, n=4, k=544, group_size=544, offset="symmetric"))
    x = activations(1, 544, torch.float16)
    assert error(stepped(weight, 8, x), weight.product(rounded(x))) < TOLERANCE[torch.float16]
