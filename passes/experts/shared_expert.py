"""An expert that computes every token, beside a mixture of experts, found by the sum of their answers.

In doubt it is none, and the reason is said in words. Nothing is changed.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch.fx import Node

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.kernels.formats.base import DTYPES
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.linear.call import LinearCall, read_linear
from etcuda.passes.recognize.dense import DenseCall, recognize_dense
from etcuda.passes.recognize.gate import Gate, recognize_gate
from etcuda.passes.recognize.rows import same_rows
from etcuda.passes.recognize.terms import alike, name_of, operands

aten = torch.ops.aten
_ops = torch.ops.etcuda

_RESHAPES = (aten.reshape.default, aten.view.default)
Product = LinearCall | DenseCall


@dataclasses.dataclass(frozen=True)
class SharedExpert:
    """experts(x) + [sigmoid(share(x)) *] down(activation(gate(x)) * up(x)), of which nothing else reads a part.

    Attributes:
        total: the sum.
        answer: what the mixture adds to it: ``experts`` or a reshape.
        experts: the call of ``etcuda::experts``.
        routing: the call of ``etcuda::route_experts`` whose results it takes.
        gate, up, down: products of the shared expert.
        share: the product of one row; ``None`` where nothing is multiplied.
        activation: of the gate.
    """

    total: Node
    answer: Node
    experts: Node
    routing: Node
    gate: Product
    up: Product
    down: Product
    share: Product | None
    activation: str


def recognize_shared_expert(experts: Node) -> SharedExpert | str:
    """The shared expert beside a call of ``etcuda::experts``, or why there is none."""
    answer = experts
    while True:
        if len(answer.users) != 1:
            return f"{name_of(answer)} is read {len(answer.users)} times"
        (total,) = answer.users
        if total.target not in _RESHAPES or same_rows(total) is not same_rows(experts):
            break
        answer = total
    pair = operands(total, aten.add.Tensor)
    if pair is None or answer not in pair or total.kwargs.get("alpha", 1) != 1:
        return f"its answer goes to {name_of(total)}, which is no sum of two tensors"
    other = pair[1] if pair[0] is answer else pair[0]
    if not alike(tensor_of(answer), tensor_of(other)):
        return "what is added to its answer has another shape or dtype"
    found = _factors(other)
    down = product_of(found[0])
    if down is None:
        return f"{name_of(found[0])} is added to its answer, and is no product"
    gated = _unshaped(down.x)
    gate = recognize_gate(gated)
    if isinstance(gate, str):
        return gate
    first, second = product_of(gate.gate), None if gate.up is None else product_of(gate.up)
    share = None if found[1] is None else product_of(found[1])
    if first is None or second is None or (found[1] is not None and share is None):
        return "what is added to its answer is no gated block of products"
    routing = _routing_of(experts)
    if isinstance(routing, str):
        return routing
    made = SharedExpert(total, answer, experts, routing, first, second, down, share, gate.activation)
    reason = _refuse(made, gate, gated, other)
    return made if reason is None else reason


def product_of(node: Node) -> Product | None:
    """The product, quantised or not, that a tensor is, up to its shape."""
    source = _unshaped(node)
    return read_linear(source) or recognize_dense(source, DTYPES)


def _factors(node: Node) -> tuple[Node, Node | None]:
    """What is multiplied with the sigmoid of one number a row, and what the sigmoid is of; the node itself and ``None``
    where it is something else."""
    pair = operands(_unshaped(node), aten.mul.Tensor)
    for share, rest in () if pair is None else (pair, pair[::-1]):
        source = _unshaped(share)
        shape, other = tensor_of(share).shape, tensor_of(rest).shape
        if source.target is aten.sigmoid.default and shape[-1] == 1 and list(shape[:-1]) == list(other[:-1]):
            return rest, source.args[0]  # type: ignore[return-value]
    return node, None


def _routing_of(experts: Node) -> Node | str:
    """The call whose two results are which experts a token has, and their weights."""
    given = arguments(experts)
    results: list[Node] = [given["routing"], given["indices"]]
    calls = [each.args[0] if each.target is operator.getitem else None for each in results]
    call: Any = calls[0]
    if not isinstance(call, Node) or call is not calls[1] or call.target is not _ops.route_experts.default:
        return "experts are not chosen by route_experts"
    if [each.args[1] for each in results] != [0, 1] or any(len(each.users) != 1 for each in results):
        return "something else reads which experts are chosen"
    if arguments(call)["shared"] != "none":
        return "it has a shared expert already"
    made: Node = call
    return made


def _refuse(found: SharedExpert, gate: Gate, gated: Node, other: Node) -> str | None:
    x = same_rows(arguments(found.experts)["x"])
    for each in (found.gate, found.up, *(() if found.share is None else (found.share,))):
        if same_rows(each.x) is not x:
            return f"{each.node.name} reads {same_rows(each.x).name}, and the experts {x.name}"
    if found.gate.node is found.up.node:
        return "gate and up are one product"
    within = [found.gate.node, found.up.node, gated, gate.gate, gate.up, found.down.node, found.down.x, other]
    within += [] if found.share is None else [found.share.node]
    for node in within:
        if node is not None and len(node.users) != 1:
            return f"{name_of(node)} is read {len(node.users)} times"
    return None


def _unshaped(node: Node) -> Node:
    """What a tensor is a reshape of, its last size kept, or itself."""
    while node.target in _RESHAPES and isinstance(node.args[0], Node):
        before, after = tensor_of(node.args[0]).shape, tensor_of(node).shape
        if not before or not after or before[-1] != after[-1]:
            break
        node = node.args[0]
    return node
