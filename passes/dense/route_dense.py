"""Products of few tokens with unquantised weights go to our kernel, those of a joined weight as one."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.kernels.common.device import supports_pdl
from etcuda.kernels.dense.choose.select import choose, most_tokens
from etcuda.kernels.dense.problem import DenseProblem, refuse
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import target_of
from etcuda.passes.linear.call import ROWS_OF
from etcuda.passes.recognize.dense import DenseCall, GatedPair, recognize_dense, recognize_gated_pair
from etcuda.target import CudaTarget
from etcuda.torch_private import bounds

log = logging.getLogger(__name__)

aten = torch.ops.aten
_ops = torch.ops.etcuda


@dataclasses.dataclass(frozen=True)
class _Product:
    """Products that are computed as one.

    Attributes:
        calls: in the order of their rows in the weight.
        weight: [N, K] of all of them.
        bias: [N], or ``None``.
        pair: if they are the factors of a gated activation, which is computed with them.
    """

    calls: tuple[DenseCall, ...]
    weight: Node
    bias: Node | None
    pair: GatedPair | None = None

    @property
    def problem(self) -> DenseProblem:
        """The product in numbers, for the most tokens that it can have."""
        rows, k = (int(size) for size in tensor_of(self.weight).shape)
        most = bounds(self.calls[0].num_tokens)[1]
        gated = int(self.pair is not None)
        return DenseProblem(1 << 30 if most is None else max(most, 1), rows // (1 + gated), k, gated)


@graph_pass(requires=("fuse_dense", "route_linear", "fuse_quantize", "fuse_reorder"))
def route_dense(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces products whose number of tokens is always small.

    Before: ``q, k = mm(x, permute(w[:n])), mm(x, permute(w[n:]))``.
    After: ``y = dense_matvec(x, w, ...)``, ``q, k`` slices of it.
    Before: ``mul(silu(mm(x, permute(w[:n]))), mm(x, permute(w[n:])))``.
    After: ``dense_matvec(x, w, None, "silu", ...)``.
    Up to how many tokens the kernel is taken the measured table says, with an activation and without; other products
    stay the library's.
    """
    target = config.target
    if not isinstance(target, CudaTarget):
        return 0
    calls = {call.node: call for node in program.graph.nodes if (call := recognize_dense(node)) is not None}
    changed = 0
    for product in _products(program, calls):
        ways = [product] if product.pair is None else [product, dataclasses.replace(product, pair=None)]
        taken = next((each for each in ways if _is_taken(each.problem, target)), None)
        if taken is not None:
            _route(program, taken, taken.problem, target)
            changed += len(product.calls)
    if changed:
        erase_dead(program.graph)
        refresh_meta(program.graph)
    return changed


def _is_taken(problem: DenseProblem, target: CudaTarget) -> bool:
    """Whether the kernel computes a product, for any number of tokens that it can have."""
    return refuse(problem) is None and problem.m <= most_tokens(problem, target)


def _products(program: ExportedProgram, calls: dict[Node, DenseCall]) -> list[_Product]:
    """What is computed as one: all products of a joined weight, or a product by itself."""
    by_weight: dict[Node, list[DenseCall]] = {}
    alone = []
    for call in calls.values():
        if ROWS_OF in call.weight.meta:
            by_weight.setdefault(_whole(call.weight), []).append(call)
        elif target_of(program, call.weight) is not None:
            alone.append(_Product((call,), call.weight, call.bias))
    pairs = [pair for node in program.graph.nodes if (pair := recognize_gated_pair(node, calls)) is not None]
    by_gate = {pair.gate.node: pair for pair in pairs}
    joined = []
    for weight, parts in by_weight.items():
        parts.sort(key=_first_row)
        ends = [0, *(_first_row(part) + part.n for part in parts)]
        consecutive = [_first_row(part) for part in parts] == ends[:-1] and ends[-1] == tensor_of(weight).shape[0]
        if not consecutive or any(part.source is not parts[0].source for part in parts):
            continue
        pair = by_gate.get(parts[0].node)
        if pair is not None and [call.node for call in parts] != [pair.gate.node, pair.up.node]:
            pair = None
        bias = parts[0].bias
        joined.append(_Product(tuple(parts), weight, None if bias is None else _whole(bias), pair))
    return [*joined, *alone]


def _route(program: ExportedProgram, product: _Product, problem: DenseProblem, target: CudaTarget) -> None:
    choice = choose(problem, target)
    constant = all(target_of(program, node) is not None for node in (product.weight, product.bias) if node is not None)
    # A kernel that starts early reads its weight before those in front of it have ended: none of them may write it.
    trailing = choice.config.launch(problem.m, target.num_sms, int(constant and supports_pdl(target))).to_args()
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    first = min(product.calls, key=lambda call: order[call.node])
    pair = product.pair
    activation = "none" if pair is None else pair.activation
    args = (first.x, product.weight, product.bias, activation, *trailing)
    whole = insert_call(first.node if pair is None else pair.y, _ops.dense_matvec.default, args)
    if pair is not None:
        pair.y.replace_all_uses_with(_in_shape_of(pair, whole))
    elif len(product.calls) == 1:
        first.node.replace_all_uses_with(whole)
    else:
        start = 0
        for call in product.calls:
            part = insert_call(first.node, aten.slice.Tensor, (whole, 1, start, start + call.n))
            call.node.replace_all_uses_with(part)
            start += call.n
    names = ", ".join(call.node.name for call in product.calls)
    log.info("%s goes to dense_matvec %s, activation %s: %s", names, choice.config, activation, choice.source)


def _in_shape_of(pair: GatedPair, whole: Node) -> Node:
    """The result [M, N] in the shape [..., N] of the gated activation."""
    shaped = _shaped(pair)
    return whole if shaped is None else insert_call(pair.y, aten.reshape.default, (whole, shaped))


def _shaped(pair: GatedPair) -> Any:
    """The sizes that the other factor's product is reshaped to, or ``None`` if it is not."""
    for user in pair.up.node.users:
        if user.target in (aten.reshape.default, aten.view.default):
            return user.args[1]
    return None


def _whole(rows: Node) -> Node:
    whole = rows.args[0] if ROWS_OF in rows.meta else rows
    assert isinstance(whole, Node)
    return whole


def _first_row(call: DenseCall) -> int:
    start: Any = call.weight.args[2]
    return int(start)
