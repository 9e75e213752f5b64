"""What a pass is, and what every pass needs."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterator

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.export.exported_program import ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.backend.options import BackendConfig

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


def fake(value: object) -> object:
    """What a node argument stands for: the node's fake tensor or symbolic integer, anything else unchanged."""
    return value.meta.get("val") if isinstance(value, Node) else value


def tensor_of(node: Node) -> torch.Tensor:
    """The fake tensor of a node that yields one tensor.

    Raises:
        NodeError: the node yields something else.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise NodeError(node, f"expected a node that yields one tensor, got {type(value).__name__}")
    return value


def insert_call(before: Node, target: torch._ops.OpOverload, args: tuple[object, ...], **kwargs: object) -> Node:
    """Inserts a call in front of ``before``, with the metadata of its result computed on fake tensors."""
    graph = before.graph
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
    for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "debug_handle"):
        if key in before.meta:
            node.meta[key] = before.meta[key]
    compute_meta(node)
    return node


def result_of(call: Node, index: int) -> Node:
    """The node of one of several results of a call, right behind it."""
    for user in call.users:
        if user.target is operator.getitem and user.args[1] == index:
            return user
    with call.graph.inserting_after(call):
        part = call.graph.call_function(operator.getitem, (call, index))
    part.meta = {**call.meta}
    compute_meta(part)
    return part


def compute_meta(node: Node) -> None:
    """Recomputes ``meta['val']`` of a call from the metadata of its inputs."""
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    mode = detect_fake_mode([n.meta["val"] for n in node.all_input_nodes]) or _graph_mode(node)
    if not callable(node.target):
        raise NodeError(node, f"expected a callable target, got {node.target!r}")
    # Without the Python dispatcher, operators implemented in C++ fix symbolic sizes to their hints.
    with mode or contextlib.nullcontext(), enable_python_dispatcher():
        node.meta["val"] = node.target(*args, **kwargs)


def _graph_mode(node: Node) -> torch._subclasses.FakeTensorMode | None:
    """The fake mode of the graph that a node without tensor inputs lies in."""
    for other in node.graph.nodes:
        value = other.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    return None
