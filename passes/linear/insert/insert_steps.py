"""Kernels by the number of tokens: a chain of ``cond`` on M, which the host decides."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

from etcuda.passes.graph.branches import Branch, inputs_of, insert_choice
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.linear.call import ROWS_OF, LinearCall
from etcuda.passes.linear.choose import Step
from etcuda.passes.linear.insert.insert_kernels import insert_kernels
from etcuda.passes.recognize.gate import gate_nodes
from etcuda.target import CudaTarget

aten = torch.ops.aten


def insert_steps(
    module: GraphModule, before: Node, calls: list[LinearCall], found: list[Step], target: CudaTarget, pdl: int
) -> list[Node]:
    """Inserts the kernels of one step or more in front of ``before``; returns a result for each call.

    One step needs no ``cond``. Of several, the first is one branch and the others are the other. A gated activation
    that only these calls read is computed in the branches, so that a kernel there can compute and quantize it.
    """
    if len(found) == 1:
        return insert_kernels(before, calls, found[0], target, pdl)
    limit = found[0].most
    assert limit is not None
    gate = gate_nodes(calls[0].x, [call.node for call in calls])
    inputs = inputs_of(gate) or [calls[0].x]
    size = _insert_num_tokens(before, inputs[0])
    # Operands may not alias each other: branches take whole weights, and the rows of them by themselves.
    nodes = [*inputs, *(node for call in calls for node in call.operands)]
    operands = [_whole(node) for node in nodes]
    branches = (_branch(calls, found[:1], gate, target, pdl), _branch(calls, found[1:], gate, target, pdl))
    return insert_choice(module, before, size, limit, branches, operands, [call.node for call in calls])


def _branch(calls: list[LinearCall], found: list[Step], gate: list[Node], target: CudaTarget, pdl: int) -> Branch:
    """Takes rows of weights, computes a gated activation if there is one, then the calls."""

    def build(module: GraphModule, before: Node, operands: Mapping[Node, Node]) -> list[Node]:
        inside = dict(operands)
        for rows in dict.fromkeys(node for call in calls for node in call.operands if ROWS_OF in node.meta):
            inside[rows] = insert_call(before, aten.slice.Tensor, (inside[_whole(rows)], *rows.args[1:]))
            inside[rows].meta[ROWS_OF] = rows.meta[ROWS_OF]
        for node in gate:
            with module.graph.inserting_before(before):
                inside[node] = module.graph.node_copy(node, inside.__getitem__)
        return insert_steps(module, before, [call.on(inside) for call in calls], found, target, pdl)

    return Branch(f"linear_{found[0].choices[0].kernel}", build)


def _whole(node: Node) -> Node:
    """The weight that ``node`` is rows of, or ``node`` itself."""
    whole = node.args[0] if ROWS_OF in node.meta else node
    assert isinstance(whole, Node)
    return whole


def _insert_num_tokens(before: Node, x: Node) -> Node | int:
    """M, the product of the leading sizes of ``x``."""
    product: Node | int = 1
    for dim, size in enumerate(tensor_of(x).shape[:-1]):
        factor = size if isinstance(size, int) else insert_call(before, aten.sym_size.int, (x, dim))
        if isinstance(product, int) and (product == 1 or isinstance(factor, int)):
            product = factor if product == 1 else product * factor
            continue
        product = insert_call(before, operator.mul, (product, factor))
    return product
