"""Recurrent kernels in Triton's interpreter, their formulas, and what their operators refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.registry import find
from etcuda.kernels.recurrent.problem import DeltaProblem, delta_cost, refuse_heads
from etcuda.kernels.recurrent.reference.states import keeps_each
from tests.kernels.interpreter import BROKEN, run_checks
from tests.kernels.recurrent.recurrent_checks import (
    RINGS,
    SPANS,
    check_ring,
    close,
    conv_arguments,
    delta_arguments,
    naive_conv,
    naive_delta,
    naive_scan,
    scan_arguments,
)

MAKERS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., tuple[Tensor, Tensor]]]] = {
    "gated_delta_rule": (delta_arguments, naive_delta),
    "selective_scan": (scan_arguments, naive_scan),
}


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("recurrent/interpreted.py")


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize(("length", "first"), SPANS)
def test_formulas(name: str, length: int, first: int) -> None:
    make, naive = MAKERS[name]
    given = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in
             make(length, first, torch.float32, torch.float32).items()}  # fmt: skip
    close(find(f"etcuda::{name}").compute(given), naive(given), 2e-5)


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize(("length", "first", "slots"), RINGS)
def test_formulas_over_rings(name: str, length: int, first: int, slots: int) -> None:
    make, naive = MAKERS[name]
    given = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in
             make(length, first, torch.float32, torch.float32).items()}  # fmt: skip
    check_ring(lambda **more: find(f"etcuda::{name}").compute(more), naive, given, slots, 2e-5)


@pytest.mark.parametrize(("length", "first"), [(1, 0), (1, 2), (5, 1), (20, 9)])
def test_the_formula_of_convolutions(length: int, first: int) -> None:
    given = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in
             conv_arguments(length, first, torch.float32).items()}  # fmt: skip
    close(find("etcuda::causal_conv").compute(given), naive_conv(given), 1e-5)
    given["state"] = torch.cat((given["state"], given["state"][:, :3] + 1), 1)
    close(find("etcuda::causal_conv").compute(given), naive_conv(given), 1e-5)


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_formula_of_any_length_is_one_graph(name: str) -> None:
    """What is traced for some length holds for others, shorter than a chunk and longer, and does not count tokens."""
    make, naive = MAKERS[name]
    formula = find(f"etcuda::{name}").reference

    def given(length: int) -> dict[str, Any]:
        made = make(length, 3, torch.float32, torch.float32)
        return {k: v.cpu() if isinstance(v, Tensor) else v for k, v in made.items()}

    names = [key for key, value in given(2).items() if isinstance(value, Tensor)]
    fixed = {key: value for key, value in given(2).items() if key not in names}
    traced = make_fx(
        lambda *tensors: formula(**dict(zip(names, tensors, strict=True)), **fixed), tracing_mode="symbolic"
    )
    graph = traced(*(given(100)[name] for name in names))
    assert len(graph.graph.nodes) < 1000
    for length in (2, 129):
        close(graph(*(given(length)[name] for name in names)), naive(given(length)), 2e-5)


def test_a_ring_needs_a_bounded_length() -> None:
    """Otherwise it is not known whether the state behind each token is kept."""
    length = ShapeEnv().create_unbacked_symint()
    assert not keeps_each(zeros(2, 4, 24, 20), length)
    with pytest.raises(KernelArgumentError, match="expected a bound for a call with a ring of 5 states, got u0"):
        keeps_each(zeros(2, 5, 4, 24, 20), length)


def test_costs_and_what_is_not_served() -> None:
    problem = DeltaProblem(1, 1, 16, 32, 128, 128)
    state = 32 * 128 * 128
    ring = dataclasses.replace(problem, length=4, stored=4)
    assert delta_cost(ring).nbytes == 5 * 2 * state + 4 * (delta_cost(problem).nbytes - 2 * 2 * state)
    assert delta_cost(problem).nbytes == 2 * 2 * state + (2 * 16 + 2 * 32) * 128 * 2 + 2 * 32 * 4
    assert refuse_heads(problem) is None
    assert refuse_heads(DeltaProblem(1, 1, 16, 32, 128, 300)) == "value_dim is 1 to 256, got 300"


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("causal_conv", {"activation": "gelu"}, r"activation: expected one of none, silu, got 'gelu'"),
        ("causal_conv", {"x": zeros(2, 3)}, r"x: expected 3 dimensions \[batch, L, channels\], got \[2, 3\]"),
        ("causal_conv", {"bias": zeros(7)}, r"bias \[channels\]: expected its size to be 20, got 7"),
        ("causal_conv", {"weight": zeros(20, 9), "state": zeros(2, 9, 20)}, r"width is 1 to 8, got 9. Compute it with"),
        ("gated_delta_rule", {"k": zeros(2, 1, 1, 20)}, r"k \[batch, L, num_k_heads, key_dim\]: expected its size to"),
        ("gated_delta_rule", {"g": zeros(2, 1, 3)}, r"g \[batch, L, num_v_heads\]: expected its size to be 2, got 3"),
        ("gated_delta_rule", {"v": zeros(2, 1, 2, 20)}, r"v: expected the dtype of q, torch.float16, got torch.float3"),
        ("gated_delta_rule", {"positions": zeros(1)}, r"positions: expected int32 or int64, got torch.float32"),
        ("gated_delta_rule", {"positions": torch.zeros(2).long()}, r"positions \[L\]: expected its size to be 1, got"),
        ("gated_delta_rule", {"state": zeros(2, 2, 20, 24).mT}, r"state: expected a contiguous tensor, got strides"),
        ("gated_delta_rule", {"beta": zeros(2, 1, 2, dtype=torch.float64)}, r"beta: expected bfloat16, float16 or flo"),
        ("gated_delta_rule", {"beta": zeros(2, 1, 2).to("meta")}, r"beta: expected a tensor on cpu, got meta"),
        ("gated_delta_rule", {"state": zeros(2, 65, 2, 24, 20)}, r"state: expected 1 to 64 slots, got 65"),
        ("gated_delta_rule", {"state": zeros(2, 3, 2, 24, 21)}, r"\[batch, slots, num_v_heads, key_dim, value_dim\]"),
        ("causal_conv", {"state": zeros(2, 3, 20)}, r"a ring of the filter's width of 4 rows or more, got 3"),
        ("selective_scan", {"dt_min": 2.0}, r"dt_min: expected at most dt_max, 1.5, got 2.0"),
        ("selective_scan", {"a": zeros(3)}, r"a \[num_heads\]: expected its size to be 4, got 3"),
        ("gated_delta_layer", {"x": zeros(2, 1, 80), "conv": zeros(2, 4, 80), "weight": zeros(80, 4)},
         r"x: expected channels of whole key heads of 24, twice, and of 2 value heads of 20, got 80"),
        ("gated_delta_layer", {"norm": zeros(21)}, r"norm \[value_dim\]: expected its size to be 20, got 21"),
    ],
)  # fmt: skip
def test_what_operators_refuse(name: str, changes: dict[str, Any], message: str) -> None:
    record = find(f"etcuda::{name}")
    with pytest.raises(KernelArgumentError, match=message):
        record.overload(**record.samples("cpu")[0] | changes)


def test_heads_that_do_not_share_keys_evenly_are_refused() -> None:
    given = delta_arguments(1, 0, torch.float32, torch.float32)
    given |= {"v": zeros(2, 1, 3, 20), "g": zeros(2, 1, 3), "beta": zeros(2, 1, 3), "state": zeros(2, 3, 24, 20)}
    with pytest.raises(KernelArgumentError, match=r"v: expected heads a multiple of the 2 of k, got 3"):
        torch.ops.etcuda.gated_delta_rule(**given)
