"""A gated activation is computed at the end of the product that gives both of its halves."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.kernels.formats.registry import by_op
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.calls import arguments, insert_call
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.recognize.gate import Gate, recognize_gate
from etcuda.passes.recognize.rows import other_readers, same_rows
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)

aten = torch.ops.aten


@graph_pass(requires=("fuse_mlp", "fuse_quantize"))
def fuse_gate(program: ExportedProgram, config: BackendConfig) -> int:
    """Lets a product of few tokens apply the gated activation that alone reads it.

    Before: ``y = int4_matvec(x, gate | up, ...)``, ``mul(silu(y[..., :I]), y[..., I:])``.
    After: ``int4_matvec(x, gate | up, ..., "silu")``.
    A product and its activation are rounded where they were rounded one after another, and a row's sum is split as
    before. A kernel less stands between two products: the second one starts early, and its weights are on their way
    meanwhile. Gates that a kernel quantizes stay with it; ``fuse_quantize`` has taken them.
    """
    if not isinstance(config.target, CudaTarget):
        return 0
    changed = 0
    for node in list(program.graph.nodes):
        if node.op == "call_function" and node.target is aten.mul.Tensor:
            changed += _fuse(node)
    if changed:
        program.graph.eliminate_dead_code()
        refresh_meta(program.graph)
    return changed


def _fuse(y: Node) -> int:
    """Replaces one gated activation; returns 1, or 0 if ``y`` is none of a product of few tokens."""
    gate = recognize_gate(y)
    if not isinstance(gate, Gate) or gate.up is not None:
        return 0
    product = same_rows(gate.gate)
    record = by_op(product.target)
    if record is None or product.target not in (record.matvec_op, record.matvec_quantized_op):
        return 0
    halves = [user for user in gate.gate.users if user.target is aten.slice.Tensor]
    others = other_readers(product, halves)
    if others:
        log.info("%s stays by itself: %s reads all of %s too", y.name, others[0].name, product.name)
        return 0
    readers = {user for half in halves for user in half.users}
    inner = {each for each in readers if each is not y and set(each.users) == {y}}
    if readers - inner - {y}:
        log.info("%s stays by itself: a half of %s is read elsewhere too", y.name, product.name)
        return 0
    fused = insert_call(y, product.target, (*_values(product), gate.activation))
    shape = tensor_of(y).shape
    if tensor_of(fused).dim() != len(shape):
        fused = insert_call(y, aten.reshape.default, (fused, [*_leading(gate.gate, y), shape[-1]]))
    y.replace_all_uses_with(fused)
    log.info("%s: %s is applied by the product %s", y.name, gate.activation, product.name)
    return 1


def _values(product: Node) -> list[Any]:
    """The arguments of a product but the last one, the activation."""
    *values, activation = arguments(product).values()
    assert activation == "none"
    return values


def _leading(whole: Node, before: Node) -> list[int | Node]:
    """The leading sizes of the product as its readers see it."""
    return [
        size if isinstance(size, int) else insert_call(before, aten.sym_size.int, (whole, dim))
        for dim, size in enumerate(tensor_of(whole).shape[:-1])
    ]
