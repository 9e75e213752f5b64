"""The activation operators without a GPU: results on the CPU, refusals, fake tensors."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations.choose.configs import ActivationConfig, gate_candidates, norm_candidates
from etcuda.kernels.activations.op import gate_quantize, rms_norm_quantize
from etcuda.kernels.activations.problem import (
    ActivationProblem,
    gate_cost,
    gate_reorder_cost,
    norm_cost,
    refuse,
    refuse_gate_reorder,
)
from etcuda.kernels.activations.reference import (
    gate_reference,
    quantize_activation_reference,
    reorder_activation_reference,
)
from etcuda.kernels.activations.reorder_op import gate_reorder
from etcuda.kernels.common import registry
from etcuda.target import TARGETS

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
H200 = TARGETS["sm_90"]


def norm_arguments(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "x": torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "residual": torch.ones(2, 3, 64).bfloat16(),
        "weight": torch.linspace(-1, 1, 64).bfloat16(),
        "eps": 1e-6,
        "weight_offset": 1.0,
        "cast_first": False,
        "keep_h": True,
        "keep_y": True,
        "blocks": 2,
        "num_warps": 1,
        "pdl": 0,
    }
    return good | changes


def gate_arguments(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "gate": torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "up": torch.linspace(-2, 2, 384).reshape(2, 3, 64).bfloat16(),
        "activation": "silu",
        "keep_y": True,
        "blocks": 8,
        "num_warps": 1,
        "pdl": 0,
    }
    return good | changes


def reorder_arguments(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "gate": torch.randn(2, 3, 512, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "up": None,
        "gate_activation": "silu",
        "activation_dtype": "int8",
        "block_m": 64,
        "pdl": 0,
    }
    return good | changes


def check_quantized(y: Tensor, quantized: tuple[Tensor, ...]) -> None:
    for got, wanted in zip(quantized, quantize_activation_reference(y), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_on_the_cpu_is_that_of_the_libraries(dtype: torch.dtype) -> None:
    given = norm_arguments()
    x, residual, weight = (given[name].to(dtype) for name in ("x", "residual", "weight"))
    h = x + residual
    plain = torch.nn.functional.rms_norm(h, (64,), weight, 1e-6)
    wide = h.float() * torch.rsqrt(h.float().square().mean(-1, keepdim=True) + 1e-6)
    gemma = (wide * (1.0 + weight.float())).to(dtype)
    llama = weight * wide.to(dtype)
    for wanted, offset, cast_first in ((plain, 0.0, False), (gemma, 1.0, False), (llama, 0.0, True)):
        changes = {"x": x, "residual": residual, "weight": weight, "weight_offset": offset, "cast_first": cast_first}
        got_h, y, *quantized = rms_norm_quantize(*norm_arguments(**changes).values())
        assert torch.equal(got_h, h)
        torch.testing.assert_close(y, wanted, rtol=1e-6 if dtype == torch.float32 else 0, atol=0)
        check_quantized(y, tuple(quantized))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
def test_gate_on_the_cpu(dtype: torch.dtype, activation: str) -> None:
    given = gate_arguments()
    gate, up = given["gate"].to(dtype), given["up"].to(dtype)
    functions = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "gelu_erf": torch.nn.functional.gelu,
    }
    wanted = functions[activation](gate) * up
    for pair in ((gate, up), (torch.cat([gate, up], -1), None)):
        y, *quantized = gate_quantize(*pair, activation, True, 8, 1, 0)
        # Vectors and single numbers differ in the last bits of fp32, where 1 + erf cancels.
        torch.testing.assert_close(y, wanted, rtol=1e-6 if dtype == torch.float32 else 0, atol=1e-6)
        check_quantized(y, tuple(quantized))
        assert gate_quantize(*pair, activation, False, 8, 1, 0)[0].shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("activation_dtype", "block_m"), [("int8", 16), ("int8", 64), ("exact", 32)])
def test_reordered_gate_on_the_cpu(dtype: torch.dtype, activation_dtype: str, block_m: int) -> None:
    both = reorder_arguments()["gate"].to(dtype)
    y = gate_reference(both, None, "gelu_erf")
    wanted = reorder_activation_reference(y, 4, activation_dtype, block_m, 1)
    for pair in ((both, None), both.chunk(2, -1)):
        got = gate_reorder(*pair, "gelu_erf", activation_dtype, block_m, 0)
        for one, other in zip(got, wanted, strict=True):
            assert torch.equal(one, other)


def test_results_are_tensors_of_their_own() -> None:
    given = norm_arguments(residual=None, weight=None)
    h, y, *_ = rms_norm_quantize(*given.values())
    assert torch.equal(h, given["x"])
    assert len({tensor.data_ptr() for tensor in (h, y, given["x"])}) == 3
    given = norm_arguments(keep_h=False, keep_y=False)
    assert [tensor.numel() for tensor in rms_norm_quantize(*given.values())[:2]] == [0, 0]


BAD_NORM: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"x": torch.ones(2, 64).int()}, "x: expected bfloat16, float16 or float32, got torch.int32."),
    "scalar": ({"x": torch.ones(())}, "x: expected at least one dimension [..., K], got []."),
    "K": (
        {"x": torch.ones(2, 48)},
        "x: K is a multiple of 32, got 48. Pad the rows, or do not quantize them.",
    ),
    "no K": (
        {"x": torch.ones(2, 0)},
        "x: K is a multiple of 32, got 0. Pad the rows, or do not quantize them.",
    ),
    "residual dtype": (
        {"residual": torch.ones(2, 3, 64)},
        "residual: expected the dtype of x, torch.bfloat16, got torch.float32.",
    ),
    "residual shape": (
        {"residual": torch.ones(3, 64).bfloat16()},
        "residual: expected the shape of x, [2, 3, 64], got [3, 64].",
    ),
    "weight shape": ({"weight": torch.ones(1, 64)}, "weight: expected shape [64], got [1, 64]."),
    "weight dtype": (
        {"weight": torch.ones(64).double()},
        "weight: expected bfloat16, float16 or float32, got torch.float64.",
    ),
    "eps": ({"eps": 0.0}, "eps: expected a positive finite number, got 0.0."),
    "eps nan": ({"eps": math.nan}, "eps: expected a positive finite number, got nan."),
    "blocks": ({"blocks": 3}, "blocks: expected a power of two, got 3."),
    "warps": ({"num_warps": 3}, "num_warps: expected 1, 2, 4, 8, 16 or 32, got 3."),
}
BAD_GATE: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"gate": torch.ones(2, 64).int()}, "gate: expected bfloat16, float16 or float32, got torch.int32."),
    "K": (
        {"gate": torch.ones(2, 48), "up": torch.ones(2, 48)},
        "gate: K is a multiple of 32, got 48. Pad the rows, or do not quantize them.",
    ),
    "both": (
        {"gate": torch.ones(2, 96), "up": None},
        "gate: expected gate | up of 2 K columns, K a multiple of 32, got 96.",
    ),
    "up dtype": (
        {"up": torch.ones(2, 3, 64).half()},
        "up: expected the dtype of gate, torch.bfloat16, got torch.float16.",
    ),
    "up shape": (
        {"up": torch.ones(2, 3, 32).bfloat16()},
        "up: expected the shape of gate, [2, 3, 64], got [2, 3, 32].",
    ),
    "activation": (
        {"activation": "relu"},
        "activation: expected one of 'silu', 'gelu_tanh', 'gelu_erf', got 'relu'.",
    ),
    "blocks": ({"blocks": 0}, "blocks: expected a power of two, got 0."),
}


BAD_REORDER: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"gate": torch.ones(2, 512).int()}, "gate: expected bfloat16, float16 or float32, got torch.int32."),
    "K": (
        {"gate": torch.ones(2, 64)},
        "gate: K is a multiple of 256 below 65536, got 32. Pad the rows, or use reorder_activation with tiled=0.",
    ),
    "gate": (
        {"gate_activation": "relu"},
        "gate_activation: expected one of 'silu', 'gelu_tanh', 'gelu_erf', got 'relu'.",
    ),
    "activation_dtype": (
        {"activation_dtype": "int4"},
        "activation_dtype: expected 'int8' or 'exact', got 'int4'.",
    ),
    "rows of tiles": ({"block_m": 24}, "block_m: expected a power of two of at least 16, got 24."),
}


@pytest.mark.parametrize(
    ("operator", "good", "message"),
    [
        *((rms_norm_quantize, norm_arguments(**change), f"rms_norm_quantize: {m}") for change, m in BAD_NORM.values()),
        *((gate_quantize, gate_arguments(**change), f"gate_quantize: {m}") for change, m in BAD_GATE.values()),
        *((gate_reorder, reorder_arguments(**change), f"gate_reorder: {m}") for change, m in BAD_REORDER.values()),
    ],
    ids=[
        f"{kind}-{name}"
        for kind, bad in (("norm", BAD_NORM), ("gate", BAD_GATE), ("reorder", BAD_REORDER))
        for name in bad
    ],
)
def test_bad_arguments(operator: Any, good: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelArgumentError, match=f"^{re.escape(message)}$"):
        operator(*good.values())
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) if isinstance(each, Tensor) else each for each in good.values()]
        with pytest.raises(KernelArgumentError, match=f"^{re.escape(message)}$"):
            operator(*fakes)


def test_fake_results_have_the_shapes_of_the_real_ones() -> None:
    operators = (
        (rms_norm_quantize, norm_arguments()), (gate_quantize, gate_arguments()), (gate_reorder, reorder_arguments())
    )  # fmt: skip
    for operator, good in operators:
        real = operator(*good.values())
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(each) if isinstance(each, Tensor) else each for each in good.values()]
            fake = operator(*fakes)
        for one, other in zip(real, fake, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (tuple(other.shape), other.dtype, tuple(other.stride()))


class Model(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        _, z, *first = torch.ops.etcuda.rms_norm_quantize(x, y, None, 1e-5, 0.0, False, False, True, 2, 1, 0)
        return *first, *torch.ops.etcuda.gate_quantize(z, y, "silu", False, 2, 1, 0)


def test_export_for_any_number_of_rows() -> None:
    rows = torch.export.Dim("rows", min=2, max=64)
    x, y = torch.randn(2, 5, 64)
    program = torch.export.export(Model(), (x, y), dynamic_shapes=({0: rows}, {0: rows}))
    for count in (2, 64):
        x, y = torch.randn(2, count, 64)
        for got, wanted in zip(program.module()(x, y), Model()(x, y), strict=True):
            assert torch.equal(got, wanted)


def test_calls_in_numbers() -> None:
    for name, arguments, problem in (
        ("rms_norm_quantize", norm_arguments(), ActivationProblem(6, 64, 2, residual=True)),
        ("rms_norm_quantize", norm_arguments(residual=None), ActivationProblem(6, 64)),
        ("gate_quantize", gate_arguments(), ActivationProblem(6, 64)),
        ("gate_reorder", reorder_arguments(), ActivationProblem(6, 256)),
        ("quantize_activation", {"x": torch.ones(3, 32)}, ActivationProblem(3, 32, 4)),
        ("reorder_activation", {"x": torch.ones(2, 3, 96).half()}, ActivationProblem(6, 96)),
    ):
        assert registry.find(f"etcuda::{name}").problem_of(arguments) == problem


def test_problems_of_a_reordered_gate() -> None:
    assert refuse_gate_reorder(ActivationProblem(1, 256)) is None
    for k in (0, 128, 65536):
        assert refuse_gate_reorder(ActivationProblem(1, k)) == f"K is a multiple of 256 below 65536, got {k}"
    assert gate_reorder_cost(ActivationProblem(2, 256)).nbytes == 3 * 2 * 256 * 2


def test_problems() -> None:
    assert refuse(ActivationProblem(1, 64)) is None
    assert refuse(ActivationProblem(1, 100)) == "K is a multiple of 32, got 100"
    assert refuse(ActivationProblem(1, 1 << 20)) == "K is less than 1048576, got 1048576"
    few, summed = ActivationProblem(2, 64), ActivationProblem(2, 64, residual=True)
    stored = 2 * 64 + 2 * 2 * 8
    assert norm_cost(few).nbytes == (2 * 64 + 64) * 2 + stored
    assert norm_cost(summed).nbytes == (3 * 2 * 64 + 64) * 2 + stored
    assert gate_cost(few).nbytes == 2 * 2 * 64 * 2 + stored


@pytest.mark.parametrize(
    ("k", "guess"), [(32, (1, 1)), (96, (4, 1)), (4096, (128, 16)), (5376, (256, 16)), (1 << 17, (512, 16))]
)
def test_configurations(k: int, guess: tuple[int, int]) -> None:
    problem = ActivationProblem(1, k)
    found = norm_candidates(problem, H200)
    assert found[0] == ActivationConfig(*guess)
    assert len(set(found)) == len(found)
    # No lane holds more than 32 numbers of a tile.
    assert all(each.blocks <= 32 * each.num_warps for each in found)
    assert gate_candidates(problem, H200)[0].num_warps < gate_candidates(ActivationProblem(1000, k), H200)[0].num_warps
