"""Which kernels mixtures of experts get, and that the host computes their formula."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from etcuda.kernels.experts.configs import FewLaunch, HopperLaunch, ManyLaunch, launch_of
from etcuda.passes.graph.calls import arguments
from tests.kernels.experts.experts_checks import PARTS, Case, int4, int8
from tests.passes.linear.quantized_programs import GPU, HOST, calls, export, lowered
from tests.passes.made_weights import made_weights

CASES = {
    "int4": Case(format=int4(), dtype=torch.bfloat16), "int4 exact": Case(format=int4(), activation_dtype="exact"),
    "fp16": Case(), "fp32": Case(dtype=torch.float32),
    "biased": Case(
        format=int4(), down_format=int8(), dtype=torch.bfloat16, activation="swiglu_oai", biased=True
    ),
}  # fmt: skip


class Mixture(nn.Module):
    """A router and its experts."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        given = {name: each.cpu() if isinstance(each, Tensor) else each for name, each in case.arguments().items()}
        names = [name if part == "qdata" else f"{name}_{part}" for name in ("gate_up", "down") for part in PARTS]
        for name in names:
            if given[name] is not None:
                self.register_buffer(name, given[name])
        self.names, self.top_k = names, case.top_k
        settings = ("group_size", "down_group_size", "activation", "activation_dtype")
        self.settings = (*(given[name] for name in settings), [])

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """x [tokens, hidden], logits [tokens, experts]."""
        routing, indices = torch.ops.etcuda.route_experts(
            logits, None, "softmax", self.top_k, 1, 1, "max", True, 0.0, 1.0, 0
        )
        stored = [getattr(self, name, None) for name in self.names]
        result: Tensor = torch.ops.etcuda.experts(x, indices, routing, *stored, *self.settings)
        return result


def program(case: Case, tokens: int, most: int | None) -> Any:
    x = torch.randn(tokens, case.hidden, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    logits = torch.randn(tokens, case.experts, generator=torch.Generator().manual_seed(2))
    shape = None if most is None else {0: Dim("tokens", min=2, max=most)}
    dynamic = None if most is None else (shape, shape)
    model = Mixture(case)
    return model, export(model, x, logits, dynamic=dynamic), (x, logits)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("tokens", "most"), [(1, None), (3, 8), (3, 33)])
def test_the_most_tokens_decide(name: str, tokens: int, most: int | None) -> None:
    model, exported, inputs = program(CASES[name], tokens, most)
    made = lowered(exported, GPU)
    (call,) = calls(made, "experts")
    how = launch_of(arguments(call)["how"])
    few = most != 33 and name != "int4 exact"
    assert isinstance(how, FewLaunch if few else ManyLaunch)
    # Its weights are constants, and it is in front of nothing that writes them.
    assert how.pdl == 1
    (routing,) = calls(made, "route_experts")
    assert arguments(routing)["pdl"] == 1
    with made_weights(made):
        assert torch.equal(made.module(check_guards=False)(*inputs)[0], model(*inputs))


@pytest.mark.parametrize(
    ("hidden", "weights", "on", "expected"),
    [
        (256, "int4", True, HopperLaunch), (256, "int4", False, ManyLaunch), (320, "int4", True, ManyLaunch),
        (256, "bf16", True, HopperLaunch),
    ],
)  # fmt: skip
def test_an_option_gives_many_tokens_to_the_kernel_in_cuda(hidden: int, weights: str, on: bool, expected: type) -> None:
    case = Case(hidden=hidden, width=256, format=int4() if weights == "int4" else None, dtype=torch.bfloat16)
    _, exported, _ = program(case, 3, 33)
    config = dataclasses.replace(GPU, options=dataclasses.replace(GPU.options, hopper_experts=on))
    (call,) = calls(lowered(exported, config), "experts")
    how = launch_of(arguments(call)["how"])
    assert type(how) is expected
    if expected is HopperLaunch:
        assert how == HopperLaunch(132, 1)


@pytest.mark.parametrize("name", ["int4", "fp32", "biased"])
@pytest.mark.parametrize("tokens", [1, 90])
def test_the_host_computes_the_formula(name: str, tokens: int) -> None:
    model, exported, inputs = program(CASES[name], tokens, None if tokens == 1 else 128)
    made = lowered(exported, HOST)
    assert not calls(made)
    with made_weights(made):
        (got,) = made.module(check_guards=False)(*inputs)
    torch.testing.assert_close(got, model(*inputs), rtol=1e-2, atol=1e-2)
