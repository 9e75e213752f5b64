"""Formulas compute what eager computes, in eager."""

from __future__ import annotations

import pytest
import torch

from etcuda.passes.decompositions.record import Decomposition
from etcuda.passes.decompositions.table import DECOMPOSITION_OF, by_operator
from tests.passes.decompositions.cases import Case, spatial_cases
from tests.passes.decompositions.formulas import Formulas, cast, results
from tests.passes.decompositions.quantized_cases import quantized_cases

aten = torch.ops.aten
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
NOT_MEASURED = {
    # Their results in eager have other dtypes than their declaration says.
    "choose_qparams_per_token",
    "_choose_qparams_per_token_asymmetric_impl",
    # By another name of the same.
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "avg_pool1d",
    # Not in every release of PyTorch.
    "_upsample_lanczos2d_aa",
}


def _check(case: Case, dtype: torch.dtype) -> set[torch._ops.OpOverload]:
    inputs = cast(case.inputs, dtype)
    with Formulas() as mode:
        try:
            got = results(case.call, *inputs)
        except NotImplementedError:
            failed = True
        else:
            failed = False
    if failed:
        # Eager lacks it too, or the formula is to blame.
        with pytest.raises(NotImplementedError):
            results(case.call, *inputs)
        return set()
    wanted = results(case.call, *cast(inputs, torch.float64))
    for one, other in zip(got, wanted, strict=True):
        exact = not other.is_floating_point()
        assert one.dtype == (other.dtype if exact else dtype), case.name
        tolerance = 0.0 if exact else TOLERANCE[dtype]
        torch.testing.assert_close(one.to(other.dtype), other, rtol=tolerance, atol=tolerance, msg=case.name)
    return mode.used


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_images(dtype: torch.dtype) -> None:
    used = set().union(*(_check(case, dtype) for case in spatial_cases()))
    assert len(used) == 12


def test_quantised_values_are_equal() -> None:
    for case in quantized_cases():
        with Formulas():
            got = results(case.call, *case.inputs)
        for one, other in zip(got, results(case.call, *case.inputs), strict=True):
            assert one.dtype == other.dtype, case.name
            assert torch.equal(one, other), case.name


def divisions(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of numbers that are hard to divide, and of random ones."""
    inf, nan = float("inf"), float("nan")
    hard = [1.0, -1.0, 0.1, -0.1, 0.0, -0.0, 6.0, 3.0, -7.0, 2.0, inf, -inf, nan, 1e-30, 3e4, 0.3]
    values = torch.cat([torch.tensor(hard), torch.randn(40, generator=torch.Generator().manual_seed(2)) * 9]).to(dtype)
    return values[:, None], values[None, :]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_rounded_divisions_are_equal(dtype: torch.dtype, mode: str) -> None:
    a, b = divisions(dtype)
    for one, other in ((a, b), (a, 0.1), (a, 3)):
        with Formulas() as formulas:
            got = [torch.div(one, other, rounding_mode=mode), one // other, torch.remainder(one, other)]
        assert formulas.used
        # Narrow numbers are divided in fp32, and only the result is rounded.
        wide = dtype if dtype == torch.float64 else torch.float32
        one, other = one.to(wide), other.to(wide) if isinstance(other, torch.Tensor) else other
        wanted = [torch.div(one, other, rounding_mode=mode), one // other, torch.remainder(one, other)]
        wanted = [value.to(dtype) for value in wanted]
        for place, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
            assert torch.equal(mine.nan_to_num(7.5), theirs.nan_to_num(7.5)), place
            assert torch.equal(mine.isnan(), theirs.isnan())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.uint8], ids=str)
def test_small_integers_are_equal(dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    x = torch.tensor([limits.min, limits.min + 1, 0, 1, 2, limits.max - 1, limits.max], dtype=dtype)
    y = x.flip(0)

    def call() -> list[torch.Tensor]:
        found = [x.maximum(y), x.minimum(y), x.clamp(min=1), x.clamp(max=3), x.clamp(5, 2)]
        return found if dtype == torch.uint8 else [*found, x.abs(), x.abs() > 1, x.abs().int() + 1]

    with Formulas() as mode:
        got = call()
    assert mode.used >= {aten.maximum.default, aten.minimum.default, aten.clamp.default}
    assert (aten.abs.default in mode.used) == (dtype != torch.uint8)
    for one, other in zip(got, call(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_every_formula_is_compared() -> None:
    a, b = divisions(torch.float32)
    with Formulas() as mode:
        aten.div.Tensor_mode(a, b, rounding_mode="floor")
        aten.div.Scalar_mode(a, 3.0, rounding_mode="floor")
        aten.floor_divide.default(a, b)
        aten.floor_divide.Scalar(a, 3.0)
        aten.remainder.Tensor(a, b)
        aten.remainder.Scalar(a, 3.0)
        small = torch.arange(-3, 4, dtype=torch.int8)
        aten.abs.default(small)
        aten.maximum.default(small, small)
        aten.minimum.default(small, small)
        aten.clamp.default(small, 1)
    used = set(mode.used)
    for case in (*spatial_cases(), *quantized_cases()):
        with Formulas() as mode:
            results(case.call, *case.inputs)
        used |= mode.used
    names = {op._schema.name.split("::")[-1] for op in DECOMPOSITION_OF.keys() - used}
    assert names <= NOT_MEASURED


def test_places_that_are_no_numbers_read_nothing() -> None:
    grid = torch.tensor([[[[float("nan"), 0.0], [float("inf"), 0.0], [0.0, 0.0]]]])
    with Formulas():
        got = torch.nn.functional.grid_sample(torch.ones(1, 1, 3, 3), grid, align_corners=True)
    assert got.flatten().tolist() == [0.0, 0.0, 1.0]


def test_an_operator_has_one_formula() -> None:
    one = Decomposition((aten.sin.default,), torch.sin)
    with pytest.raises(ValueError, match=r"aten.sin.default has two formulas: expected one, got sin and sin"):
        by_operator((one, one))


def test_no_images() -> None:
    checked = 0
    for case in spatial_cases():
        inputs = tuple(value[:0] for value in case.inputs)
        try:
            wanted = results(case.call, *inputs)
        except (RuntimeError, IndexError):
            continue
        with Formulas():
            got = results(case.call, *inputs)
        assert [(each.shape, each.dtype) for each in got] == [(each.shape, each.dtype) for each in wanted], case.name
        checked += 1
    assert checked > 50
