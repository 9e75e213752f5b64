"""Checks of recurrent kernels: test_recurrent.py runs them in Triton's interpreter, tests/gpu on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.recurrent.reference.layer import gated_delta_layer_reference
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter is slow, and cuts fp32 off to bfloat16 where a GPU rounds; there fp32 has cases of its own.
DTYPES = (torch.float16, torch.bfloat16, torch.float32) if DEVICE == "cuda" else (torch.float16,)
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 2e-2, torch.float32: 2e-5}
# Tokens and the position of the first: one token, a chunk less one, a chunk, one more, and two with a part.
SPANS = ((1, 0), (1, 7), (2, 0), (63, 7), (64, 0), (65, 7), (150, 3))


class Numbers:
    """Random tensors on the device."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._random, self._dtype = torch.Generator().manual_seed(0), dtype

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self._random).to(dtype or self._dtype).to(DEVICE)


def delta_arguments(length: int, first: int, dtype: torch.dtype, state_dtype: torch.dtype) -> dict[str, Any]:
    """A call of ``gated_delta_rule``, of two sequences whose queries, keys and values are views of one tensor."""
    numbers = Numbers(dtype)
    product = numbers(2, length, 2 * 2 * 24 + 4 * 20)
    q, k, v = (part.unflatten(-1, (-1, width)) for part, width in zip(product.split([48, 48, 80], -1), (24, 24, 20),
                                                                     strict=True))  # fmt: skip
    return {
        "q": q, "k": k, "v": v, "g": -numbers(2, length, 4, dtype=torch.float32).abs(),
        "beta": numbers(2, length, 4).sigmoid(), "state": numbers(2, 4, 24, 20, dtype=state_dtype),
        "positions": torch.arange(first, first + length, device=DEVICE), "normalize": True,
    }  # fmt: skip


def naive_delta(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Token by token, in double precision."""
    q, k, v, g, beta, state = (given[name].double() for name in ("q", "k", "v", "g", "beta", "state"))
    if int(given["positions"][0]) == 0:
        state = torch.zeros_like(state)
    if given["normalize"]:
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    outs = []
    for token in range(q.shape[1]):
        state = state * g[:, token].exp()[..., None, None]
        held = torch.einsum("bhkv,bhk->bhv", state, k[:, token])
        new = (v[:, token] - held) * beta[:, token].unsqueeze(-1)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, token], new)
        outs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, token]) * q.shape[-1] ** -0.5)
    return torch.stack(outs, 1), state


def scan_arguments(length: int, first: int, dtype: torch.dtype, state_dtype: torch.dtype) -> dict[str, Any]:
    """A call of ``selective_scan``, of two sequences."""
    numbers = Numbers(dtype)
    product = numbers(2, length, 4 * 12 + 2 * 2 * 24)
    x, b, c = (part.unflatten(-1, (-1, width)) for part, width in zip(product.split([48, 48, 48], -1), (12, 24, 24),
                                                                     strict=True))  # fmt: skip
    return {
        "x": x, "dt": numbers(2, length, 4) - 2, "a": -numbers(4, dtype=torch.float32).abs(), "b": b, "c": c,
        "d": numbers(4), "dt_bias": numbers(4), "state": numbers(2, 4, 12, 24, dtype=state_dtype),
        "positions": torch.arange(first, first + length, device=DEVICE), "dt_min": 0.01, "dt_max": 0.5,
    }  # fmt: skip


def naive_scan(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Token by token, in double precision."""
    x, dt, a, b, c, state = (given[name].double() for name in ("x", "dt", "a", "b", "c", "state"))
    if int(given["positions"][0]) == 0:
        state = torch.zeros_like(state)
    if given["dt_bias"] is not None:
        dt = dt + given["dt_bias"].double()
    dt = F.softplus(dt).clamp(given["dt_min"], given["dt_max"])
    b, c = (t.repeat_interleave(x.shape[2] // t.shape[2], 2) for t in (b, c))
    outs = []
    for token in range(x.shape[1]):
        state = state * (a * dt[:, token]).exp()[..., None, None]
        state = state + torch.einsum("bhp,bhn->bhpn", x[:, token] * dt[:, token].unsqueeze(-1), b[:, token])
        outs.append(torch.einsum("bhpn,bhn->bhp", state, c[:, token]))
    out = torch.stack(outs, 1)
    return out if given["d"] is None else out + x * given["d"].double().unsqueeze(-1), state


def conv_arguments(length: int, first: int, dtype: torch.dtype, width: int = 4, channels: int = 300) -> dict[str, Any]:
    """A call of ``causal_conv``, of two sequences whose channels are not next to each other."""
    numbers = Numbers(dtype)
    return {
        "x": numbers(2, channels, length).transpose(1, 2), "state": numbers(2, width, channels),
        "positions": torch.arange(first, first + length, device=DEVICE), "weight": numbers(channels, width),
        "bias": numbers(channels), "activation": "silu",
    }  # fmt: skip


def naive_conv(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """With the inputs before in front, by PyTorch's convolution, in double precision."""
    x, state, weight = (given[name].double() for name in ("x", "state", "weight"))
    first, width, length = int(given["positions"][0]), weight.shape[1], x.shape[1]
    held = state.shape[1]
    rows = [
        state[:, place % held] if place >= 0 else torch.zeros_like(state[:, 0])
        for place in range(first - width + 1, first)
    ]
    whole = torch.cat([*(row.unsqueeze(1) for row in rows), x], 1)
    bias = None if given["bias"] is None else given["bias"].double()
    out = F.conv1d(whole.transpose(1, 2), weight.unsqueeze(1), bias, groups=weight.shape[0]).transpose(1, 2)
    ring = given["state"].clone()
    for place in range(max(first, first + length - held), first + length):
        ring[:, place % held] = given["x"][:, place - first].to(ring.dtype)
    return F.silu(out) if given["activation"] == "silu" else out, ring


# Tokens, the position of the first, and the slots of a ring: the last ones do not fit, and one state of them is kept.
RINGS = ((1, 0, 5), (1, 7, 5), (3, 0, 5), (5, 8, 5), (4, 2, 16), (70, 3, 5))


def in_ring(state: Tensor, first: int, slots: int) -> Tensor:
    """A ring [batch, slots, ...] whose state in front of position ``first`` is ``state``; the others are no numbers."""
    ring = torch.full((state.shape[0], slots, *state.shape[1:]), float("nan"), dtype=state.dtype, device=state.device)
    if first > 0:
        ring[:, (first - 1) % slots] = state
    return ring


def cut(given: dict[str, Any], length: int) -> dict[str, Any]:
    """The arguments of a call of the first ``length`` tokens."""
    names = ("q", "k", "v", "g", "beta", "x", "dt", "b", "c")
    return given | {name: given[name][:, :length] for name in names if name in given}


def check_ring(
    op: Callable[..., tuple[Tensor, Tensor]], naive: Callable[..., tuple[Tensor, Tensor]], given: dict[str, Any],
    slots: int, tolerance: float,
) -> None:  # fmt: skip
    """Checks outputs, each state that is kept, and that nothing else is written."""
    first, length = int(given["positions"][0]), given["positions"].shape[0]
    ring = in_ring(given["state"], first, slots)
    out, new = op(**given | {"state": ring.clone()})
    close((out,), (naive(given)[0],), tolerance)
    written = range(length) if length <= slots else (length - 1,)
    for token in written:
        close((new[:, (first + token) % slots],), (naive(cut(given, token + 1))[1],), tolerance)
    rest = sorted(set(range(slots)) - {(first + token) % slots for token in written})
    assert torch.equal(new[:, rest].nan_to_num(9.0), ring[:, rest].nan_to_num(9.0))


def close(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float) -> None:
    """Asserts that results are equal, of their greatest numbers, and that nothing is left out."""
    for one, other in zip(got, wanted, strict=True):
        error = (one.double() - other.double()).abs().amax() / other.double().abs().amax()
        assert float(error) < tolerance, f"relative error {float(error):.1e}"


class RecurrentChecks(Poisoned):
    """Results against recurrences that are computed token by token."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("length", "first"), SPANS)
    def test_gated_delta_rule(self, length: int, first: int, dtype: torch.dtype) -> None:
        given = delta_arguments(length, first, dtype, torch.float32)
        close(torch.ops.etcuda.gated_delta_rule(**given), naive_delta(given), TOLERANCE[dtype])

    def test_keys_that_are_alike(self) -> None:
        """The system to solve is as badly conditioned as it can be, and nothing is forgotten."""
        given = delta_arguments(64, 3, torch.float32, torch.float32)
        given["k"], given["g"] = given["k"][:, :1].expand(2, 64, 2, 24), given["g"] * 0
        given["beta"] = torch.ones_like(given["beta"])
        close(torch.ops.etcuda.gated_delta_rule(**given), naive_delta(given), 1e-4)

    def test_decays_that_underflow(self) -> None:
        given = delta_arguments(70, 3, torch.float32, torch.float32)
        given["g"] = given["g"] * 100
        # What a chunk decays by is a difference of two sums.
        close(torch.ops.etcuda.gated_delta_rule(**given), naive_delta(given), 5e-4)

    @pytest.mark.parametrize("length", [1, 65])
    def test_states_of_the_dtype_of_activations(self, length: int) -> None:
        given = delta_arguments(length, 3, torch.float16, torch.float16)
        close(torch.ops.etcuda.gated_delta_rule(**given), naive_delta(given), 4e-3)
        given = scan_arguments(length, 3, torch.float16, torch.float16)
        close(torch.ops.etcuda.selective_scan(**given), naive_scan(given), 4e-3)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("length", "first"), SPANS)
    def test_selective_scan(self, length: int, first: int, dtype: torch.dtype) -> None:
        given = scan_arguments(length, first, dtype, torch.float32)
        close(torch.ops.etcuda.selective_scan(**given), naive_scan(given), TOLERANCE[dtype])

    @pytest.mark.parametrize("length", [1, 65])
    def test_selective_scan_without_what_may_be_left_out(self, length: int) -> None:
        given = scan_arguments(length, 2, torch.float32, torch.float32) | {"d": None, "dt_bias": None}
        given["dt_max"] = float("inf")
        close(torch.ops.etcuda.selective_scan(**given), naive_scan(given), 2e-5)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("length", "first"), [(1, 0), (1, 2), (1, 9), (2, 1), (3, 0), (5, 2), (33, 0), (33, 9)])
    def test_causal_conv(self, length: int, first: int, dtype: torch.dtype) -> None:
        given = conv_arguments(length, first, dtype)
        close(torch.ops.etcuda.causal_conv(**given), naive_conv(given), TOLERANCE[dtype])

    @pytest.mark.parametrize("width", [1, 2, 3, 7])
    def test_widths(self, width: int) -> None:
        for length, first in ((1, 4), (20, 1)):
            given = conv_arguments(length, first, torch.float32, width, 12) | {"bias": None, "activation": "none"}
            close(torch.ops.etcuda.causal_conv(**given), naive_conv(given), 1e-5)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("length", "first", "slots"), RINGS)
    def test_rings_of_states(self, length: int, first: int, slots: int, dtype: torch.dtype) -> None:
        given = delta_arguments(length, first, dtype, torch.float32)
        check_ring(torch.ops.etcuda.gated_delta_rule, naive_delta, given, slots, TOLERANCE[dtype])
        given = scan_arguments(length, first, dtype, torch.float32)
        check_ring(torch.ops.etcuda.selective_scan, naive_scan, given, slots, TOLERANCE[dtype])
        given = conv_arguments(length, first, dtype, channels=40)
        given["state"] = Numbers(dtype)(2, 4 + slots - 1, 40)
        close(torch.ops.etcuda.causal_conv(**given), naive_conv(given), TOLERANCE[dtype])

    @pytest.mark.parametrize("first", [0, 2, 7])
    def test_a_layer_whose_states_are_rings(self, first: int) -> None:
        """As with one state: what is kept beside it changes nothing."""
        numbers = Numbers(torch.float16)
        given = self.layer_arguments(first, torch.float16)
        rows = numbers(2, 8, given["conv"].shape[2])
        for place in range(max(0, first - 4), first):
            given["conv"][:, place % 4] = rows[:, place % 8]
        ring = in_ring(given["state"], first, 5)
        out, conv, new = torch.ops.etcuda.gated_delta_layer(**given | {"conv": rows.clone(), "state": ring}, pdl=0)
        wanted, expected, state = gated_delta_layer_reference(**given)
        rows[:, first % 8] = expected[:, first % 4]
        close((out, conv, new[:, first % 5]), (wanted, rows, state), TOLERANCE[torch.float16])
        assert int(new.isnan().any(-1).any(-1).any(-1)[0].sum()) == (4 if first == 0 else 3)

    @staticmethod
    def layer_arguments(first: int, dtype: torch.dtype) -> dict[str, Any]:
        """Of two sequences, whose state is one each."""
        numbers = Numbers(dtype)
        channels = 2 * 2 * 24 + 6 * 20
        return {
            "x": numbers(2, 1, channels), "z": numbers(2, 1, 6, 20), "b": numbers(2, 1, 6), "a": numbers(2, 1, 6),
            "weight": numbers(channels, 4), "bias": numbers(channels), "a_log": numbers(6, dtype=torch.float32),
            "dt_bias": numbers(6), "norm": numbers(20), "eps": 1e-6, "conv": numbers(2, 4, channels),
            "state": numbers(2, 6, 24, 20, dtype=torch.float32),
            "positions": torch.tensor([first], device=DEVICE),
        }  # fmt: skip

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("first", [0, 1, 6])
    def test_gated_delta_layer(self, first: int, dtype: torch.dtype) -> None:
        given = self.layer_arguments(first, dtype)
        got = torch.ops.etcuda.gated_delta_layer(**given, pdl=0)
        close(got, gated_delta_layer_reference(**given), TOLERANCE[dtype])
