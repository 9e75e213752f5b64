"""What a program asserts about values that only a call knows, such as ``n <= x.shape[0]`` of an ``n`` from ``.item()``.

``torch.export`` writes such an assertion into the graph and ExecuTorch's lowering takes it out. Beside each is put a
call of an operator of ours, which the lowering leaves and the runtime has a kernel for: it fails the call of the method
with a sentence, wherever the other operators run.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator
from typing import Any

import torch
from executorch.exir.lowered_backend_module import LoweredBackendModule
from executorch.exir.passes.executorch_prim_ops_registry import is_sym_op
from executorch.exir.passes.replace_aten_with_edge_pass import aten_to_edge
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from etcuda.options import BACKEND_ID
from etcuda.passes.graph.calls import insert_call
from etcuda.torch_private import behind_edge

log = logging.getLogger(__name__)

aten = torch.ops.aten

# torch declares no types here. A result of no elements, for ExecuTorch calls nothing that has none.
_library: Any = torch.library.Library("etcuda", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("check_value(Scalar condition, bool holds, str message, SymInt[] values) -> Tensor")
_library.define(
    "check_value.out(Scalar condition, bool holds, str message, SymInt[] values, *, Tensor(a!) out) -> Tensor(a!)"
)


def _no_elements(condition: object, holds: bool, message: str, values: object) -> torch.Tensor:
    # Whether it holds is asked where it is run, by the runtime.
    return torch.empty(0, dtype=torch.uint8)


def _no_elements_out(
    condition: object, holds: bool, message: str, values: object, *, out: torch.Tensor
) -> torch.Tensor:
    return out


_library.impl("check_value", _no_elements, "CompositeExplicitAutograd")
_library.impl("check_value.out", _no_elements_out, "CompositeExplicitAutograd")
torch.library.register_fake("etcuda::check_value", _no_elements, lib=_library)
CHECK = torch.ops.etcuda.check_value.default
_EDGE_CHECK = aten_to_edge(CHECK)
# Nothing uses the result, and the call stays.
torch.fx.node.has_side_effect(_EDGE_CHECK)

_SIGNS = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//", operator.mod: "%",
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=",
}  # fmt: skip
_READ = (aten.item.default, aten._local_scalar_dense.default, aten.sym_size.int)


def is_value_check(node: Node) -> bool:
    """Whether a node is a check that ``add_value_checks`` added."""
    return node.op == "call_function" and behind_edge(node.target) is CHECK


def add_value_checks(module: GraphModule) -> None:
    """Puts a check behind each condition that is asserted of what only a call knows, in front of what it guards.

    Not before, for ExecuTorch orders a graph anew around each partition, and a call that nothing uses may come to stand
    behind the output. A program without a delegate of ours runs without etcuda, whose runtime has the kernel: it gets
    none.

    Args:
        module: an Edge graph after all partitioners. ExecuTorch takes the assertions out when it writes the program.
    """
    delegates = [each for each in module.modules() if isinstance(each, LoweredBackendModule)]
    has_checks = any(is_value_check(node) for node in module.graph.nodes)
    if has_checks or not any(each.backend_id == BACKEND_ID for each in delegates):
        return
    seen: set[str] = set()
    for assertion in list(_assertions(module)):
        for condition, holds in _parts(assertion.all_input_nodes[0]):
            _add_check(condition, holds, seen)
    if seen:
        module.recompile()


def _assertions(module: GraphModule) -> Iterator[Node]:
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is aten._assert_scalar.default:
            condition = node.args[0]
            if isinstance(condition, Node) and free_unbacked_symbols(condition.meta.get("val")):
                yield node


def _parts(condition: Node, holds: bool = True) -> Iterator[tuple[Node, bool]]:
    """Comparisons that must all be true, or false, for a condition to hold."""
    if condition.target is operator.and_ and holds:
        for each in condition.all_input_nodes:
            yield from _parts(each)
    elif condition.target is torch.sym_not:
        yield from _parts(condition.all_input_nodes[0], not holds)
    else:
        yield condition, holds


def _add_check(condition: Node, holds: bool, seen: set[str]) -> None:
    numbers: dict[str, Node] = {}
    text = _text(condition, numbers)
    if text is None or not numbers:
        log.warning("the runtime cannot check %s: it has no operator for that", condition.format_node())
        return
    if not holds and condition.target is operator.eq:
        text = text.replace(" == ", " != ")
    elif not holds:
        text = f"not {text}"
    if text in seen:
        return
    seen.add(text)
    got = ", ".join(f"{name} = {{}}" for name in numbers)
    shown = text[1:-1] if text.startswith("(") else text
    message = f"expected {shown}, as the model checks, got {got}. Pass values that fulfil it."
    before = condition.next
    if condition.target is operator.ne:
        condition, holds = insert_call(before, operator.eq, condition.args), not holds
    insert_call(before, _EDGE_CHECK, (condition, holds, message, list(numbers.values())))


def _text(value: Any, numbers: dict[str, Node]) -> str | None:
    """A number as a person would write it; ``None`` where ExecuTorch's runtime cannot compute it.

    Args:
        value: a node, or a number.
        numbers: gets the nodes that it is computed from, by their text.
    """
    if not isinstance(value, Node):
        return str(value)
    if value.target in _READ and isinstance(value.meta.get("val"), torch.SymInt):
        source = value.args[0]
        text = f"{source}.shape[{value.args[1]}]" if value.target is aten.sym_size.int else f"{source}.item()"
        numbers[text] = value
        return text
    if value.target in _SIGNS and (is_sym_op(value.target) or value.target is operator.ne):
        left, right = (_text(each, numbers) for each in value.args)
        return None if left is None or right is None else f"({left} {_SIGNS[value.target]} {right})"
    return None
