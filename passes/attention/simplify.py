"""An attention call on fewer operands: heads as they were before they were repeated, numbers in place of a mask."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch.fx import Node

from etcuda.kernels.attention.problem import FULL
from etcuda.passes.attention.call import AttentionCall
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.recognize.mask import Bound, NotRecognizedError, recognize_mask
from etcuda.passes.recognize.repeated_heads import before_repeat

log = logging.getLogger(__name__)

aten = torch.ops.aten


def simplify(node: Node, call: AttentionCall) -> AttentionCall:
    """An equal call; what its operands need is inserted in front of ``node``, the call in the graph."""
    return _without_mask(node, _without_repeated_heads(call))


def _without_repeated_heads(call: AttentionCall) -> AttentionCall:
    k, v = before_repeat(call.k), before_repeat(call.v)
    if k is None or v is None or tensor_of(k).shape[1] != tensor_of(v).shape[1]:
        return call
    return dataclasses.replace(call, k=k, v=v)


def _without_mask(node: Node, call: AttentionCall) -> AttentionCall:
    """The call with kernel arguments in place of a mask that they are equal to."""
    if call.mask is None or call.causal != FULL:
        return call
    try:
        found = recognize_mask(call.mask, call.q, call.k)
    except NotRecognizedError as reason:
        log.info("%s reads its mask %s: %s", node.name, call.mask.name, reason)
        return call
    batch, _, l_q, _ = tensor_of(call.q).shape
    kv_len = None if found.kv_len is None else _insert_lengths(node, found.kv_len, batch)
    positions = None if found.positions is None else _insert_positions(node, found.positions, batch, l_q)
    return dataclasses.replace(
        call, mask=None, kv_len=kv_len, positions=positions, causal=found.causal, window=found.window
    )


def _insert_lengths(node: Node, bound: Bound, batch: int | torch.SymInt) -> Node:
    """[batch]."""
    lengths = _with_offset(node, bound)
    if tensor_of(lengths).dim() != 1:
        lengths = insert_call(node, aten.reshape.default, (lengths, [-1]))
    if tensor_of(lengths).shape[0] == 1 and batch != 1:
        return insert_call(node, aten.expand.default, (lengths, [_batch_size(node, batch)]))
    return lengths


def _insert_positions(node: Node, bound: Bound, batch: int | torch.SymInt, l_q: int | torch.SymInt) -> Node:
    """[L_q], or [1 or batch, L_q]."""
    positions = _with_offset(node, bound)
    if l_q == 1:
        return insert_call(node, aten.reshape.default, (positions, [-1, 1]))
    if tensor_of(positions).dim() == 1 + bound.by_batch:
        return positions
    batches = _batch_size(node, batch) if bound.by_batch else 1
    return insert_call(node, aten.reshape.default, (positions, [batches, -1]))


def _with_offset(node: Node, bound: Bound) -> Node:
    if bound.offset == 0:
        return bound.source
    return insert_call(node, aten.add.Tensor, (bound.source, bound.offset))


def _batch_size(node: Node, batch: int | torch.SymInt) -> object:
    if isinstance(batch, int):
        return batch
    q: Any = node.args[0]
    return insert_call(node, aten.sym_size.int, (q, 0))
