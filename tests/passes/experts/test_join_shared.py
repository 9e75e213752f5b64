"""Which shared experts become experts of the mixture beside them, and that the answers stay."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from etcuda.kernels.experts.configs import FewLaunch, ManyLaunch, launch_of
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.program_constants import mark_other_methods
from etcuda.passes.manager import run_passes
from etcuda.passes.repeats.find import find_repeats
from tests.kernels.experts.experts_checks import PARTS, Case, int4
from tests.passes.linear.quantized_programs import GPU, calls, constants, delegated, export
from tests.passes.made_weights import made, made_weights

# The last expert is the shared one.
EXPERTS, TOP_K, HIDDEN, WIDTH = 8, 2, 64, 96
WEIGHTS = {
    "int4": Case(experts=EXPERTS + 1, hidden=HIDDEN, width=WIDTH, format=int4(), dtype=torch.bfloat16),
    "bf16": Case(experts=EXPERTS + 1, hidden=HIDDEN, width=WIDTH, dtype=torch.bfloat16),
}


class Block(nn.Module):
    """A mixture and its shared expert, whose answer is weighed by a sigmoid if ``gated``."""

    def __init__(self, case: Case, gated: bool, width: int = WIDTH, activation: str = "silu", leak: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.case, self.gated, self.activation, self.leak = case, gated, activation, leak
        self.router = nn.Parameter(torch.randn(EXPERTS, HIDDEN, dtype=case.dtype), requires_grad=False)
        self.share = nn.Parameter(torch.randn(1, HIDDEN, dtype=case.dtype) / 8, requires_grad=False)
        self.given = case.arguments()
        self.names = [n if part == "qdata" else f"{n}_{part}" for n in ("gate_up", "down") for part in PARTS]
        self.settings = [self.given[n] for n in ("group_size", "down_group_size", "activation", "activation_dtype")]
        for name in self.names:
            whole = self.given[name]
            if whole is None:
                continue
            self.register_buffer(name, whole[:-1].clone())
            part = name.removeprefix("gate_up").removeprefix("down")
            if name.startswith("down"):
                columns = whole.shape[2] * width // WIDTH
                self.register_buffer(f"own_down{part}", whole[-1, :, :columns].clone())
            else:
                self.register_buffer(f"own_gate{part}", whole[-1, :width].clone())
                self.register_buffer(f"own_up{part}", whole[-1, WIDTH : WIDTH + width].clone())

    def _linear(self, x: Tensor, name: str) -> Tensor:
        stored: list[Any] = [
            getattr(self, f"own_{name}" if part == "qdata" else f"own_{name}_{part}", None) for part in PARTS
        ]
        if self.case.format is None:
            return functional.linear(x, stored[0])
        result: Tensor = torch.ops.etcuda.int4_linear(x, *stored, 32, self.case.activation_dtype)
        return result

    def forward(self, x: Tensor) -> Any:
        """x [tokens, hidden]."""
        act = functional.silu if self.activation == "silu" else functional.gelu
        between = act(self._linear(x, "gate")) * self._linear(x, "up")
        shared = self._linear(between, "down")
        routing, indices = torch.ops.etcuda.route_experts(
            functional.linear(x, self.router), None, "softmax", TOP_K, 1, 1, "max", True, 0.0, 2.0, 0
        )
        stored = [getattr(self, name, None) for name in self.names]
        answer = torch.ops.etcuda.experts(x, indices, routing, *stored, *self.settings, [])
        if self.gated:
            shared = torch.sigmoid(functional.linear(x, self.share)) * shared
        total = answer + shared
        return (total, between) if self.leak else total


def lowered(block: Block | Layers, tokens: int, most: int | None, several: bool) -> tuple[Any, Tensor]:
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1)).to(block.case.dtype)
    dynamic = None if most is None else ({0: Dim("tokens", min=2, max=most)},)
    edge = delegated(export(block, x, dynamic=dynamic), GPU)
    if several:
        mark_other_methods(edge)
    run_passes(edge, GPU)
    return edge, x


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_few_tokens_have_one_mixture(weights: str, gated: bool) -> None:
    block = Block(WEIGHTS[weights], gated)
    program, x = lowered(block, 1, None, True)
    (call,) = calls(program, "experts")
    (routing,) = calls(program, "route_experts")
    names = {str(each.target).split(".")[1] for each in calls(program)}
    assert names <= {"experts", "route_experts", "dense_matvec"}
    assert len(calls(program)) == 3
    assert arguments(routing)["shared"] == ("sigmoid" if gated else "one")
    how = launch_of(arguments(call)["how"])
    # Views of weights are constants too.
    assert isinstance(how, FewLaunch)
    assert how.pdl == 1
    stored = {name: made(value) for name, value in constants(program).items() if "more" in name}
    wanted = [block.given[name] for name in block.names if block.given[name] is not None]
    for each in wanted:
        assert any(each.flatten(0, 1).shape == got.shape and each.flatten(0, 1).equal(got) for got in stored.values())
    with made_weights(program):
        (got,) = program.module(check_guards=False)(x)
    torch.testing.assert_close(got, block(x), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_many_tokens_read_rows_of_the_same_weights(weights: str) -> None:
    block = Block(WEIGHTS[weights], True)
    one, _ = lowered(block, 1, None, True)
    many, _ = lowered(block, 40, 64, True)
    (call,) = calls(many, "experts")
    (routing,) = calls(many, "route_experts")
    assert isinstance(launch_of(arguments(call)["how"]), ManyLaunch)
    assert arguments(routing)["shared"] == "none"
    stored = [{name: value.shape for name, value in constants(each).items()} for each in (one, many)]
    assert stored[0] == stored[1]
    assert all("more" in name for name in stored[0])
    alone, _ = lowered(block, 40, 64, False)
    assert {name for name in constants(alone) if "gate_up" in name and "more" in name} == set()


class Layers(nn.Module):
    """Blocks behind one another."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(WEIGHTS["int4"], True) for _ in range(count))
        self.case = WEIGHTS["int4"]

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize(("tokens", "most"), [(1, None), (40, 64)])
def test_layers_still_repeat(tokens: int, most: int | None) -> None:
    """What is done to the weights of a layer stands in the layer, not in front of the first."""
    program, _ = lowered(Layers(6), tokens, most, True)
    repeats = find_repeats(program, 1)
    assert repeats is not None
    assert len(repeats.regions) >= 5
    assert repeats.num_structures <= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 64}, "it has 64 rows, and those of the experts 96"),
        ({"activation": "gelu"}, "its activation is gelu_erf, and the experts' silu"),
        ({"leak": True}, "is read 2 times"),
    ],
)
def test_others_stay(changes: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture) -> None:
    block = Block(WEIGHTS["int4"], True, **changes)
    with caplog.at_level(logging.INFO, "etcuda.passes.experts.join_shared"):
        program, _ = lowered(block, 1, None, True)
    assert message in caplog.text
    (routing,) = calls(program, "route_experts")
    assert arguments(routing)["shared"] == "none"
