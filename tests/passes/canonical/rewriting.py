"""Programs of functions after the passes, and a check against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from etcuda.options import BackendConfig
from etcuda.passes.manager import run_passes
from tests.partitioner.programs import edge

aten = torch.ops.aten
HOST = BackendConfig("host")
X = torch.randn(4, 6)
N = Dim("n", min=2, max=9)


def rewritten(function: Callable[..., Any], *inputs: Any, **keywords: Any) -> ExportedProgram:
    program = edge(function, *inputs, **keywords)
    run_passes(program, HOST)
    return program


def targets(program: ExportedProgram) -> set[Any]:
    modules = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return {node.target for module in modules for node in module.graph.nodes if node.op == "call_function"}


def outputs(program: ExportedProgram) -> list[torch.fx.Node]:
    return list(program.graph.output_node().args[0])  # type: ignore[arg-type]


def check(program: ExportedProgram, function: Callable[..., Any], *inputs: Any) -> None:
    got = program.module(check_guards=False)(*inputs)
    expected = function(*inputs)
    torch.testing.assert_close(got, expected if isinstance(got, tuple) else (expected,)[0])
