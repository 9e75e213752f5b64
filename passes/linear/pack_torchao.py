"""Weights that torchao quantised are packed into our layouts, int4 and int8, so that users need not know our types."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.errors import WeightFormatError
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.graph.packing import PackedPart, Packing
from etcuda.passes.graph.program_constants import forget_unused, insert_constant, made_of, target_of, value_of
from etcuda.passes.graph.recipes import stand_in
from etcuda.passes.linear.call import STORED, format_of_integers
from etcuda.passes.recognize.torchao import Use, Weight, may_hold_torchao, torchao_uses

log = logging.getLogger(__name__)

aten = torch.ops.aten


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def pack_torchao(program: ExportedProgram, config: BackendConfig) -> int:
    """Replaces products and look-ups with weights of torchao's subclasses that export has taken apart.

    Before: ``mm(x, permute(dequantize_affine(w, [1, 32], scale, zero), [1, 0]))``, or for int8 by row
    ``mul(mm(x, to(permute(w, [1, 0]))), scale)``.
    After: ``int4_linear(x, packed, ...)`` or ``int8_linear(x, packed, ...)`` on the same integers: int4 if they fit.
    Activations that torchao quantizes per token are quantized per block of 32. What cannot be packed is left alone; the
    log says why.
    """
    if not may_hold_torchao(program):
        return 0
    packed: dict[tuple[Any, ...], dict[str, Node]] = {}
    stored: dict[Node, None] = {}
    for node in list(program.graph.nodes):
        uses = torchao_uses(program, node)
        if isinstance(uses, str):
            log.info("%s is left as it is: %s", node.name, uses)
            continue
        for use in uses:
            weight = use.weight
            key = (*weight.nodes, weight.block, weight.least, weight.most)
            if key not in packed:
                try:
                    packed[key] = _pack(program, weight)
                except WeightFormatError as error:
                    log.info("%s is left as it is: %s", use.node.name, error)
                    continue
            _replace(use, packed[key])
            stored |= dict.fromkeys(weight.nodes)
    if packed:
        erase_dead(program.graph)
        forget_unused(program, list(stored))
        refresh_meta(program.graph)
    return len(packed)


def _pack(program: ExportedProgram, weight: Weight) -> dict[str, Node]:
    """The stored tensors of our layout as weights of the program, by name; packed again when they are stored.

    Raises:
        WeightFormatError: no layout of ours holds it.
    """
    targets = [target_of(program, node) for node in weight.nodes]
    name = str(targets[0])
    values = [value_of(program, str(target)) for target in targets]
    made_from = (weight.block, weight.least, weight.most)
    packing = made_of(values, ("packed", *made_from), lambda: Packing(tuple(values), *made_from, weight.dtype, name))
    stored = {}
    for part in (part for part in STORED if part in packing.parts):
        recipe = PackedPart(packing, part)
        value = made_of(values, (part, *made_from), lambda recipe=recipe: stand_in(recipe))  # type: ignore[misc]
        stored[part] = insert_constant(program, weight.integers, f"{name}_packed_{part}", value)
    return stored


def _replace(use: Use, stored: dict[str, Node]) -> None:
    tensors = [stored.get(part) for part in STORED]
    n = tensor_of(stored["qdata"]).shape[0]
    k = tensor_of(use.weight.integers).shape[1]
    weight_format = format_of_integers(tensor_of(stored["qdata"]).dtype)
    group_size = k // int(tensor_of(stored["scale"]).shape[1])
    node = use.node
    if use.activation_dtype is None:
        made = insert_call(node, weight_format.embedding_op, (use.x, *tensors, group_size, use.weight.dtype))
    else:
        trailing = (use.bias, group_size, use.activation_dtype)
        made = insert_call(node, weight_format.linear_op, (use.x, *tensors, *trailing))
        if tensor_of(made).dim() != tensor_of(node).dim():
            made = insert_call(node, aten.reshape.default, (made, [-1, n]))
    log.info("%s: packed as %s, groups of %d", node.name, weight_format.name, group_size)
    node.replace_all_uses_with(made)
