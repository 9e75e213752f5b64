"""A dynamic number of tokens is decided by empty grids: straight code, with the kernels of the nested choice."""

from __future__ import annotations

import copy
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from etcuda.backend.inductor import straight
from etcuda.backend.inductor.straight import StraightCode, straighten
from etcuda.kernels.common import conditional
from etcuda.kernels.linear.choose import table
from etcuda.passes.recognize.ways import COND
from tests.backend.wrappers import generate
from tests.passes.linear.quantized_programs import FUSION, MLP, export, lowered, make, quantized, runnable


def dynamic(model: nn.Module, x: Tensor, **dims: Any) -> ExportedProgram:
    """A model in int4 whose number of rows is dynamic, its products not joined: few rows would be, many not."""
    return lowered(export(model, x, dynamic=({x.dim() - 2: Dim("rows", **dims)},)), without=FUSION)


def launched(original: Callable[..., Tensor], launches: list[Tensor]) -> Callable[..., Tensor]:
    """A product in place of its kernel: it writes where a kernel would, and nothing where the grid is empty.

    Results that are written to go to ``launches``.
    """

    def run(*args: Any) -> Tensor:
        made = original(*args)
        condition = conditional._condition.get()
        assert condition is not None
        result = conditional.new_result(made, made.shape, made.dtype)
        if condition.active:
            result[: made.shape[0]].copy_(made)
            launches.append(result)
        return result

    return run


@pytest.mark.parametrize("shape", [(40, 64), (3, 40, 64)], ids=str)
def test_the_same_bits_as_the_nested_choice(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # The tables in the repository change.
    monkeypatch.setattr(table, "load", lambda bits, arch: None)
    model = quantized(make(MLP, bias=True))
    program = dynamic(model, torch.randn(shape).to(torch.bfloat16), min=1, max=300)
    # Modules of a program share its branches.
    module: Any = copy.deepcopy(program.module(check_guards=False))
    nested = runnable(program)
    assert straighten(module) == 2
    assert not [node for node in module.graph.nodes if node.target is COND]
    launches: list[Tensor] = []
    for part in module.modules():
        if isinstance(part, StraightCode):
            for way in part._ways:
                # The reference is in the place of the kernels, as in ``nested``.
                for product in way.products:
                    product.target = launched(REFERENCES[str(product.target)], launches)  # type: ignore[assignment]
    # As if it were being traced.
    monkeypatch.setattr(straight, "get_proxy_mode", lambda: object())
    rows = sorted({1, 2, 8, 9, 64, 65, 300} | {most // shape[0] for most in (8, 9, 64, 65) if len(shape) == 3})
    for count in rows:
        x = torch.randn(*shape[:-2], count, 64).to(torch.bfloat16)
        got = module(x)
        got = got[0] if isinstance(got, tuple | list) else got
        assert torch.equal(got, nested(x)), count
        # Gate, up and down, each by one way.
        assert len(launches) == 3, count
        launches.clear()


def _references() -> dict[str, Callable[..., Tensor]]:
    from tests.passes.linear import quantized_programs

    return {f"etcuda.{name}.default": function for name, function in quantized_programs._STAND_INS.items()}


REFERENCES = _references()


def test_other_branches_stay() -> None:
    class Either(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.cond(x.shape[0] <= 4, lambda x: x.sin(), lambda x: x.cos(), (x,))
            return result

    program = export(Either(), torch.ones(6, 8), dynamic=({0: Dim("rows", min=2, max=16)},))
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    assert straighten(module) == 0
    assert len([node for node in module.graph.nodes if node.target is COND]) == 1


@pytest.mark.slow
def test_generated_code_has_no_branches_and_launches_the_kernels_of_the_nested_choice(tmp_path: pathlib.Path) -> None:
    model = quantized(make(MLP, dim=256, hidden=512))
    program = dynamic(model, torch.randn(40, 256).to(torch.bfloat16), min=2, max=300)
    limits = {
        node.args[0].args[1]  # type: ignore[union-attr]
        for module in program.graph_module.modules() if isinstance(module, GraphModule)
        for node in module.graph.nodes if node.target is COND
    }  # fmt: skip
    assert len(limits) > 1
    code, nested = generate(program, tmp_path)
    assert (code.depth, nested.depth) == (0, len(limits))
    assert "subgraph" not in code.body
    assert "assign_tensors_out" not in code.body
    assert code.body.count("\n") < nested.body.count("\n") / 2
    seen = set()
    for rows in sorted({2, 300, *limits, *(limit + 1 for limit in limits)}):
        sizes = dict.fromkeys(re.findall(r"\bs\d+\b", code.body + nested.body), rows)
        launches = code.launches(sizes)
        assert len(launches) >= 5
        assert launches == nested.launches(sizes), rows
        seen.add(tuple(digest for digest, _ in launches))
    assert len(seen) == len(limits) + 1
