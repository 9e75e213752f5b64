"""Small programs for the tests of the partitioner and the passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig, to_edge
from torch.export import ExportedProgram


class Calls(torch.nn.Module):
    """A module out of a function, which may own tensors."""

    def __init__(self, function: Callable[..., Any], **buffers: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.takes_self = bool(buffers)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs) if self.takes_self else self.function(*inputs)


def export(
    function: Callable[..., Any], *inputs: Any, dynamic: Sequence[Any] | None = None, **buffers: torch.Tensor
) -> ExportedProgram:
    """The ATen program of a function; with ``buffers`` it gets the module as its first argument."""
    shapes = None if dynamic is None else (tuple(dynamic),)
    module = Calls(function, **buffers).eval()
    return torch.export.export(module, inputs, dynamic_shapes=shapes)


def edge(
    function: Callable[..., Any], *inputs: Any, dynamic: Sequence[Any] | None = None, **buffers: torch.Tensor
) -> ExportedProgram:
    """The Edge program of a function."""
    program = export(function, *inputs, dynamic=dynamic, **buffers)
    return to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False)).exported_program()
