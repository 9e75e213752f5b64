"""The products of experts in CUDA C++, emulated on the CPU: against the formula in double precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from etcuda.kernels.activations.reference import reorder_activation_reference
from etcuda.kernels.experts.hopper.grouped import BLOCK_M, ROWS, GroupedConfig
from tests.kernels.cuda.test_emulated import emulate, program
from tests.kernels.experts.experts_checks import RAGGED, Case, expected, int4, ragged


def plan(indices: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """What plan.py makes: assignments sorted by expert, and the records of tiles."""
    chosen = indices.reshape(-1)
    order = torch.sort(chosen, stable=True).indices.to(torch.int32)
    records: list[list[int]] = []
    first = 0
    for expert in range(experts):
        end = first + int((chosen == expert).sum())
        tiles = -(-(end - first) // BLOCK_M)
        records += [[expert, first, end, len(records)]] * tiles
        first = end
    return order, torch.tensor([[len(records), 0, 0, 0], *records], dtype=torch.int32)


def compute(case: Case, given: dict[str, Any], ctas: int, seed: int) -> Tensor:
    """The operator by both emulated products."""
    x, indices = given["x"], given["indices"]
    order, tiles = plan(indices, case.experts)
    reordered, _, _ = reorder_activation_reference(x, 4, "int8", ROWS, 1)
    assert reordered.dtype == torch.bfloat16
    rows = indices.numel()
    between = torch.full((-(-rows // ROWS) * ROWS, case.width), float("nan"), dtype=torch.bfloat16)
    products = torch.full((rows, case.hidden), float("nan"), dtype=torch.bfloat16)
    for name, source, out, k, n, gate in (
        ("gate_up", reordered, between, case.hidden, case.width, case.activation),
        ("down", between, products, case.width, case.hidden, ""),
    ):
        bits, offset = (16, "symmetric") if case.format is None else (4, case.format.offset)
        native = GroupedConfig(k, n, gate, case.top_k, bits, offset).native()
        stored = (given[name], given[f"{name}_scale"], given[f"{name}_zero"])
        memory = [source, order, tiles, *(torch.zeros(0) if each is None else each for each in stored), out]
        emulate(program("grouped", native), [ctas, source.shape[0], out.shape[0], seed], memory, 1)
    assert not products.isnan().any()
    shares = given["routing"].double().unsqueeze(-1)
    return (products.double().reshape(case.tokens, case.top_k, case.hidden) * shares).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "counts", "ctas"),
    [
        (Case(hidden=256, width=256, format=int4()), RAGGED, 7),
        # Every token has one expert, of which there are several tiles.
        (Case(hidden=256, width=256, format=int4()), [0, 0, 200], 3),
        # Steps of several tiles and scales of more than one copy; more CTAs than tiles.
        (Case(hidden=1280, width=512, format=int4(offset="minimum"), activation="gelu_erf"), [6, 0, 4], 20),
        (Case(hidden=512, width=256, activation="gelu_tanh"), [6, 0, 40, 1, 99], 5),
    ],
    ids=["ragged", "one expert", "long rows", "bfloat16"],
)
def test_experts(case: Case, counts: list[int], ctas: int) -> None:
    case, given = ragged(dataclasses.replace(case, dtype=torch.bfloat16), counts)
    on_cpu = {name: each.cpu() if isinstance(each, Tensor) else each for name, each in given.items()}
    got = compute(case, on_cpu, ctas, seed=1)
    wanted = expected(case, given).cpu()
    error = float((got - wanted).norm() / wanted.norm())
    assert error < 1e-2, f"relative error {error:.2e}"
    if sum(counts) < 100:
        # Neither the order of copies nor that of CTAs changes a bit.
        assert torch.equal(compute(case, on_cpu, 2, seed=2), got)


def test_no_tile() -> None:
    case, given = ragged(Case(hidden=256, width=256, format=int4(), dtype=torch.bfloat16), [0, 0])
    on_cpu = {name: each.cpu() if isinstance(each, Tensor) else each for name, each in given.items()}
    assert compute(case, on_cpu, 2, seed=1).shape == (0, 256)
