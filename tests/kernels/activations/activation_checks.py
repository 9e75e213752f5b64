"""Checks of the kernels that quantize activations, and of those that compute them first.

test_kernels.py runs them in Triton's interpreter, tests/gpu on a GPU.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from etcuda.kernels.activations import launch
from etcuda.kernels.activations.choose.configs import ActivationConfig, gate_candidates, norm_candidates
from etcuda.kernels.activations.launch import quantize
from etcuda.kernels.activations.problem import ActivationProblem
from tests.exhaustive import pairs
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts fp32 off to bfloat16 where a GPU rounds.
DTYPES = (torch.float16, torch.bfloat16, torch.float32) if DEVICE == "cuda" else (torch.float16, torch.float32)
EPS = 1e-5
ACTIVATIONS = ("silu", "gelu_tanh", "gelu_erf")


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0, spread: float = 2.0) -> Tensor:
    """Random rows whose magnitudes differ; a block of the first row is zero."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=random)
    rows = math.prod(shape[:-1])
    x = x * (10.0 ** torch.linspace(-spread, spread, rows)).reshape(*shape[:-1], 1)
    x.reshape(rows, -1)[0, :32] = 0
    return x.to(dtype).to(DEVICE)


def norm(x: Tensor, residual: Tensor | None = None, weight: Tensor | None = None, **given: Any) -> Any:
    """The kernel; every result is wanted where nothing else is said."""
    k = x.shape[-1]
    config = norm_candidates(ActivationProblem(x.numel() // k, k), None)[0]  # type: ignore[arg-type]
    asked = {"eps": EPS, "weight_offset": 0.0, "cast_first": False, "keep_h": True, "keep_y": True, "pdl": 0}
    return launch.rms_norm_quantize(x, residual, weight, **asked | {"config": config} | given)


def gated(gate: Tensor, up: Tensor | None, activation: str = "silu", **given: Any) -> Any:
    k = gate.shape[-1] // (2 if up is None else 1)
    config = gate_candidates(ActivationProblem(gate.numel() // gate.shape[-1], k), None)[0]  # type: ignore[arg-type]
    asked = {"keep_y": True, "config": config, "pdl": 0} | given
    return launch.gate_quantize(gate, up, activation, **asked)


def expected_norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, offset: float, cast_first: bool) -> Tensor:
    """In double precision but for the rounding in the middle."""
    h = x.double() if residual is None else (x.double() + residual.double()).to(x.dtype).double()
    y = h / torch.sqrt((h * h).sum(-1, keepdim=True) / h.shape[-1] + EPS)
    if cast_first:
        y = y.to(x.dtype).double()
    return y if weight is None else y * (weight.double() + offset)


def expected_gate(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    g = gate.double()
    if activation == "silu":
        a = g * torch.sigmoid(g)
    elif activation == "gelu_erf":
        a = 0.5 * g * torch.erfc(-g / math.sqrt(2.0))
    else:
        a = 0.5 * g * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (g + 0.044715 * g**3)))
    return a.to(gate.dtype).double() * up.double()


def check_values(got: Tensor, expected: Tensor) -> None:
    """Equal after one rounding, but where fp32 and double precision lie on two sides of a tie."""
    # 1 + erf cancels for negative numbers.
    least = float(expected.abs().max()) * 1e-6
    if got.dtype == torch.float32:
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=least)
        return
    rounded = expected.to(got.dtype)
    assert float(((got != rounded) & (expected.abs() > least)).double().mean()) < 0.02
    ulp = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), rounded.double(), rtol=2 * ulp, atol=least)


def check_quantized(y: Tensor, q: Tensor, scale: Tensor, total: Tensor) -> None:
    """q, scale and sum are what y becomes."""
    blocks = y.double().reshape(-1, y.shape[-1] // 32, 32)
    codes = q.double().reshape(blocks.shape)
    assert (q.dtype, scale.dtype, total.dtype) == (torch.int8, torch.float32, torch.float32)
    assert scale.shape == total.shape == blocks.shape[:2]
    amax = blocks.abs().amax(-1)
    torch.testing.assert_close(scale.double(), amax / 127, rtol=1e-6, atol=2.0**-126)
    wanted = blocks * torch.where(amax > 0, 127 / amax, 0.0)[..., None]
    assert float((codes - wanted).abs().max()) <= 0.5 + 1e-3
    torch.testing.assert_close(total.double(), scale.double() * codes.sum(-1), rtol=1e-6, atol=0)


class ActivationChecks(Poisoned):
    @pytest.mark.parametrize(
        ("m", "k", "dtype", "residual"),
        pairs([(1, 32), (2, 96), (3, 160), (7, 256), (9, 544)], DTYPES, [False, True]),
        ids=str,
    )
    def test_norm(self, dtype: torch.dtype, m: int, k: int, residual: bool) -> None:
        x = numbers(m, k, dtype=dtype)
        more = numbers(m, k, dtype=dtype, seed=1) if residual else None
        weight = torch.randn(k, generator=torch.Generator().manual_seed(2)).to(dtype).to(DEVICE)
        for cast_first, offset in ((True, 0.0), (False, 1.0)):
            h, y, *quantized = norm(x, more, weight, cast_first=cast_first, weight_offset=offset)
            assert torch.equal(h, x if more is None else x + more)
            check_values(y, expected_norm(x, more, weight, offset, cast_first))
            check_quantized(y, *quantized)

    @pytest.mark.parametrize("cast_first", [False, True])
    def test_the_order_of_roundings_is_that_of_the_argument(self, cast_first: bool) -> None:
        x = numbers(4, 256, dtype=torch.float16)
        weight = torch.linspace(0.5, 1.5, 256).to(torch.float16).to(DEVICE)
        _, y, *_ = norm(x, None, weight, cast_first=cast_first)
        other = expected_norm(x, None, weight, 0.0, not cast_first).to(y.dtype)
        check_values(y, expected_norm(x, None, weight, 0.0, cast_first))
        assert float((y != other).double().mean()) > 0.05

    @pytest.mark.parametrize("kind", DTYPES, ids=str)
    def test_the_weight_has_a_dtype_of_its_own_or_is_absent(self, kind: torch.dtype) -> None:
        x = numbers(2, 96, dtype=torch.float16)
        weight = torch.linspace(0.5, 1.5, 96).to(kind).to(DEVICE)
        check_values(norm(x, None, weight)[1], expected_norm(x, None, weight, 0.0, False))
        check_values(norm(x)[1], expected_norm(x, None, None, 0.0, False))

    @pytest.mark.parametrize(("k", "blocks"), [(160, 1), (160, 2), (544, 4), (544, 16)])
    def test_rows_longer_than_a_tile(self, k: int, blocks: int) -> None:
        x, more = (numbers(3, k, dtype=torch.float16, seed=seed) for seed in (0, 1))
        weight = numbers(1, k, dtype=torch.float16, seed=2)[0]
        h, y, *quantized = norm(x, more, weight, cast_first=True, config=ActivationConfig(blocks, 1))
        assert torch.equal(h, x + more)
        check_values(y, expected_norm(x, more, weight, 0.0, True))
        check_quantized(y, *quantized)

    @pytest.mark.parametrize(
        ("m", "k", "activation", "dtype"),
        pairs([(1, 32), (2, 96), (5, 160), (9, 544)], ACTIVATIONS, DTYPES),
        ids=str,
    )
    def test_gate(self, dtype: torch.dtype, activation: str, m: int, k: int) -> None:
        both = numbers(m, 2 * k, dtype=dtype, spread=0.7)
        gate, up = both[:, :k], both[:, k:]
        y, *quantized = gated(both, None, activation)
        check_values(y, expected_gate(gate, up, activation))
        check_quantized(y, *quantized)
        # Halves of one tensor, whose rows are apart, and tensors of their own.
        for pair in ((gate, up), (gate.contiguous(), up.contiguous())):
            for got, wanted in zip(gated(*pair, activation), (y, *quantized), strict=True):
                assert torch.equal(got, wanted)

    def test_leading_sizes_strides_and_addresses(self) -> None:
        wide = numbers(6, 300, dtype=torch.float16)
        x = wide[:, 1:257].unflatten(0, (3, 2)).transpose(0, 1)
        weight = numbers(1, 512, dtype=torch.float16)[0, ::2]
        for view in (x, x[0], wide.t()[:96, :2].t(), wide.flatten()[3:259]):
            w = weight[: view.shape[-1]]
            h, y, *quantized = norm(view, view, w)
            assert h.shape == y.shape == view.shape
            assert torch.equal(h, view + view)
            check_values(y, expected_norm(view, view, w, 0.0, False))
            check_quantized(y, *quantized)
            y, *quantized = gated(view, view.flip(-1))
            check_values(y, expected_gate(view, view.flip(-1), "silu"))
            check_quantized(y, *quantized)

    def test_what_is_not_wanted_is_not_there(self) -> None:
        x = numbers(3, 96, dtype=torch.float16)
        _, _, *wanted = norm(x, x)
        for keep_h, keep_y in itertools.product((False, True), repeat=2):
            h, y, *quantized = norm(x, x, keep_h=keep_h, keep_y=keep_y)
            assert (h.numel() > 0, y.numel() > 0) == (keep_h, keep_y)
            assert all(torch.equal(a, b) for a, b in zip(quantized, wanted, strict=True))
        y, *quantized = gated(x, x, keep_y=False)
        assert y.numel() == 0
        assert all(torch.equal(a, b) for a, b in zip(quantized, gated(x, x)[1:], strict=True))

    def test_no_rows(self) -> None:
        for k in (64, 160):
            x = torch.zeros(2, 0, k, dtype=torch.float16, device=DEVICE)
            assert [tuple(t.shape) for t in norm(x, config=ActivationConfig(2, 1))] == [
                (2, 0, k), (2, 0, k), (0, k), (0, k // 32), (0, k // 32)
            ]  # fmt: skip
            assert [tuple(t.shape) for t in gated(x, x)] == [(2, 0, k), (0, k), (0, k // 32), (0, k // 32)]

    def test_zero_rows_and_small_blocks(self) -> None:
        x = torch.zeros(3, 96, dtype=torch.float32, device=DEVICE)
        x[1, 0] = 1.0
        x[2, 40] = 1e-38
        _, y, q, scale, total = norm(x)
        assert not y[0].any()
        assert not q[0].any()
        assert not scale[0].any()
        assert not total[0].any()
        check_quantized(y[1:2], q[1:2], scale[1:2], total[1:2])
        gate = torch.full((1, 64), 1.0, device=DEVICE)
        up = torch.full((1, 64), 2.0**-121, device=DEVICE)
        up[0, 40] = 1.0
        _, q, scale, total = gated(gate, up)
        # A block whose greatest magnitude is below 2^-120 is zero.
        assert not q[0, :32].any()
        assert (float(scale[0, 0]), float(total[0, 0]), int(q[0, 40])) == (0.0, 0.0, 127)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_numbers_that_are_none_stay_in_their_row_and_block(self, bad: float, dtype: torch.dtype) -> None:
        x = numbers(3, 96, dtype=dtype)
        x[1, 40] = bad
        _, y, q, scale, total = norm(x)
        check_quantized(y[::2], q[::2], scale[::2], total[::2])
        if math.isnan(bad):
            assert y[1].isnan().all()
            assert scale[1].isnan().all()
        else:
            # Infinity times the zero that its row is scaled by.
            assert y[1].isnan().sum() == 1
            assert scale[1].isnan().tolist() == [False, True, False]
            assert not q[1, :32].any()
        ones = torch.ones_like(x)
        y, q, scale, total = gated(x, ones)
        keep = [0, 2]
        check_quantized(y[::2], q[[0, 2]], scale[keep], total[keep])
        check_quantized(y[1, 64:], q[1:2, 64:], scale[1:2, 2:], total[1:2, 2:])
        if bad == math.inf:
            assert float(scale[1, 1]) == math.inf
        else:
            assert scale[1, 1].isnan()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("m", [1, 3, 65])
    def test_quantisation_alone(self, dtype: torch.dtype, m: int) -> None:
        x = numbers(m, 96, dtype=dtype)
        check_quantized(x, *quantize(x, 0))
        for bad, wanted in ((math.nan, math.nan), (-math.inf, math.inf)):
            x[-1, 40] = bad
            scale = quantize(x, 0)[1][-1]
            torch.testing.assert_close(scale[1], torch.tensor(wanted, device=DEVICE), equal_nan=True)
            assert scale[::2].isfinite().all()

    @pytest.mark.parametrize("m", [1, 100])
    def test_candidates_compute_the_same(self, m: int) -> None:
        k = 512 if DEVICE == "cpu" else 5376
        problem = ActivationProblem(m if DEVICE == "cuda" else 2, k)
        x, more = (numbers(problem.m, k, dtype=torch.float16, seed=seed) for seed in (0, 1))
        first = gated(x, more)
        for norm_config in norm_candidates(problem, None):  # type: ignore[arg-type]
            h, y, *quantized = norm(x, more, config=norm_config)
            assert torch.equal(h, x + more)
            check_values(y, expected_norm(x, more, None, 0.0, False))
            check_quantized(y, *quantized)
        for config in gate_candidates(problem, None):  # type: ignore[arg-type]
            got = gated(x, more, config=config)
            assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))
