"""What a pass is, and what every pass needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from torch.export.exported_program import ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.options import BackendConfig

PassFunction = Callable[[ExportedProgram, BackendConfig], int]


@dataclasses.dataclass(frozen=True)
class GraphPass:
    """A named rewrite of a whole program.

    Attributes:
        name: the function's name, a verb.
        run: rewrites the program in place and returns how many nodes it changed.
        requires: names of the passes that must have run before.
    """

    name: str
    run: PassFunction
    requires: tuple[str, ...] = ()


class NodeError(Exception):
    """A pass cannot handle one node; the manager turns it into a ``PassError`` that names the pass."""

    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.node = node


def graph_pass(*, requires: tuple[str, ...] = ()) -> Callable[[PassFunction], GraphPass]:
    """Declares a function to be a pass that runs after those in ``requires``."""

    def declare(function: PassFunction) -> GraphPass:
        return GraphPass(function.__name__, function, requires)

    return declare


def graph_modules(program: ExportedProgram) -> Iterator[GraphModule]:
    """The program's graph module, then the branches and bodies of its control flow, outermost first."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield module


def values_of(program: ExportedProgram) -> list[object]:
    """The fake values of a program's inputs, weights and buffers."""
    return [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
