"""Rotary positions, norms of queries and keys, and the writes of keys and values to their caches are one kernel."""

from __future__ import annotations

import dataclasses
import logging
import operator
from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from etcuda.kernels.common.device import supports_pdl
from etcuda.kernels.formats.base import DTYPES
from etcuda.kernels.rotary.configs import choose
from etcuda.kernels.rotary.problem import problem_of, refuse
from etcuda.options import BackendConfig
from etcuda.passes.attention.call import CALLS, read_call
from etcuda.passes.base import graph_pass
from etcuda.passes.graph.calls import SIZE_OPS, arguments, insert_call
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.recognize.norm import Norm, recognize_norm
from etcuda.passes.recognize.repeated_heads import before_repeat
from etcuda.passes.recognize.rotary import Rotary, recognize_rotary
from etcuda.passes.recognize.terms import alike, describe, name_of, operands, same_value
from etcuda.target import CudaTarget

log = logging.getLogger(__name__)

aten = torch.ops.aten
_HEADS_FIRST = [0, 2, 1, 3]


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "inline_scalar_constants", "view_copy_to_view"))
def fuse_rotary(program: ExportedProgram, config: BackendConfig) -> int:
    """Fuses what stands between the products of queries, keys and values and an attention over a cache.

    Before: ``q = rotate(rms_norm(q), cos, sin)``, ``keys = index_put(k_cache, [None, None, positions],
    rotate(rms_norm(k), cos, sin))``, ``values = index_put(v_cache, [None, None, positions], v)``,
    ``scaled_dot_product_attention(q, keys, values)``.
    After: ``q, keys, values = rotary_cache(q, k, v, cos, sin, positions, k_cache, v_cache, ...)``.
    The kernel computes in fp32 and rounds once. The log names the calls that stay, with the reason.
    """
    if not isinstance(config.target, CudaTarget):
        return 0
    graph = program.graph
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target in CALLS]
    changed = 0
    for node in calls:
        found = _recognize(program, node)
        if isinstance(found, str):
            log.info("rotary positions in front of %s stay by themselves: %s", node.name, found)
            continue
        _insert(found, config.target)
        changed += 1
    if changed:
        erase_dead(graph)
        refresh_meta(graph)
    return changed


@dataclasses.dataclass(frozen=True)
class _Heads:
    """Heads that are rotated, behind a norm or not.

    Attributes:
        x: what is normed and rotated.
        heads_first: whether x is [batch, heads, L, head_dim]; else [batch, L, heads, head_dim].
        rotary: the rotation.
        norm: in front of it, if there is one.
        tables_heads_first: the order of the rows that cos and sin are broadcast to.
    """

    x: Node
    heads_first: bool
    rotary: Rotary
    norm: Norm | None
    tables_heads_first: bool


@dataclasses.dataclass(frozen=True)
class _Write:
    """``cache`` with ``values`` at the places ``positions``, a new value of state."""

    node: Node
    cache: Node
    positions: Node
    values: Node

    @property
    def start(self) -> Node | None:
        """The place of the first token, a scalar, if each one stands behind the one before."""
        pair = operands(self.positions, aten.add.Tensor)
        if pair is None or self.positions.kwargs.get("alpha", 1) != 1:
            return None
        for steps, start in (pair, pair[::-1]):
            if not tensor_of(start).dim() and _counts_from_zero(steps):
                return _source_of_copy(start)
        return None


@dataclasses.dataclass(frozen=True)
class _Fusion:
    """What one kernel takes over: ``query`` and the results of the two writes."""

    query: Node
    q: _Heads
    k: _Heads
    keys: _Write
    values: _Write

    @property
    def replaced(self) -> list[Node]:
        return [self.query, self.keys.node, self.values.node]

    @property
    def inputs(self) -> list[Node]:
        norms = [heads.norm.weight for heads in (self.q, self.k) if heads.norm is not None]
        tables = [self.q.rotary.cos, self.q.rotary.sin]
        caches = [self.keys.cache, self.values.cache]
        found = [
            self.q.x,
            self.k.x,
            self.values.values,
            self.keys.start or self.keys.positions,
            *tables,
            *caches,
            *norms,
        ]
        return [node for node in found if node is not None]


def _recognize(program: ExportedProgram, node: Node) -> _Fusion | str:
    """What can be fused in front of an attention call, or why nothing can."""
    call = read_call(node)
    query, key, value = call.q, call.k, call.v
    keys, values = (_read_write(program, before_repeat(each) or each) for each in (key, value))
    for write in (keys, values):
        if isinstance(write, str):
            return write
    assert isinstance(keys, _Write)
    assert isinstance(values, _Write)
    if keys.positions is not values.positions or keys.cache is values.cache:
        return "keys and values are written to one cache, or at different places"
    q, k = _read_heads(query), _read_heads(keys.values)
    for heads in (q, k):
        if isinstance(heads, str):
            return heads
    assert isinstance(q, _Heads)
    assert isinstance(k, _Heads)
    q, k = _with_equal_norms(q, k)
    reason = _unlike(q, k) or _unserved(query, keys, values, q.rotary)
    reason = reason or _unfit_tables(q, query) or _read_elsewhere(keys.values, keys.node)
    fusion = _Fusion(query, q, k, keys, values)
    return reason or _too_late(fusion) or fusion


def _read_write(program: ExportedProgram, node: Node) -> _Write | str:
    """A write to a buffer [batch, heads, places, head_dim] that no other call reads as it was."""
    if node.target is not aten.index_put.default:
        return f"{name_of(node)} is no write to a cache"
    given = arguments(node)
    cache, indices, values = given["self"], list(given["indices"]), given["values"]
    if given["accumulate"] or len(indices) != 3 or indices[:2] != [None, None] or not isinstance(indices[2], Node):
        return f"{node.name} writes to other places than the third dimension has"
    if tensor_of(indices[2]).dim() != 1 or tensor_of(cache).dim() != 4 or tensor_of(values).dim() != 4:
        return f"{node.name} writes {describe(tensor_of(values))}, expected a token for each position"
    specs = {spec.arg.name: spec for spec in program.graph_signature.output_specs}
    known = node.name in specs and specs[node.name].kind == OutputKind.BUFFER_MUTATION
    if not known or program.graph_signature.inputs_to_buffers.get(cache.name) != specs[node.name].target:
        return f"{node.name} is no new value of a buffer"
    if any(user is not node and user.target not in SIZE_OPS for user in cache.users):
        return f"{cache.name} is read as it was before"
    return _Write(node, cache, indices[2], values)


def _counts_from_zero(node: Node) -> bool:
    if node.target is aten.arange.default:
        return True
    return node.target is aten.arange.start_step and arguments(node)["start"] == 0 and arguments(node)["step"] == 1


def _source_of_copy(node: Node) -> Node:
    """What a scalar is copied from, in one dtype: it needs no memory of its own."""
    while node.target is aten.copy.default:
        source = node.args[1]
        if not isinstance(source, Node) or not alike(tensor_of(source), tensor_of(node)):
            break
        node = source
    return node


def _read_heads(node: Node) -> _Heads | str:
    """The heads that a rotation, as attention or a cache takes it, is computed from."""
    y, heads_first = _before_views(node)
    rotary = recognize_rotary(y)
    if isinstance(rotary, str):
        return rotary
    x, turned = _before_views(rotary.x)
    norm = recognize_norm(x)
    if isinstance(norm, str):
        return _Heads(rotary.x, heads_first, rotary, None, heads_first)
    return _Heads(norm.h, heads_first == turned, rotary, norm, heads_first)


def _before_views(node: Node) -> tuple[Node, bool]:
    """What ``node`` is with the second and the third dimension exchanged or not, and whether they are not."""
    heads_first = True
    while node.op == "call_function":
        source = node.args[0] if node.args else None
        if node.target is aten.permute.default and [dim % 4 for dim in arguments(node)["dims"]] == _HEADS_FIRST:
            heads_first = not heads_first
        elif node.target not in (aten.clone.default, aten.alias.default):
            break
        assert isinstance(source, Node)
        node = source
    return node, heads_first


def _with_equal_norms(q: _Heads, k: _Heads) -> tuple[_Heads, _Heads]:
    """Both with their norms, if the kernel has one for both, else none."""
    a, b = q.norm, k.norm
    if a is not None and b is not None and (a.eps, a.weight_offset) == (b.eps, b.weight_offset):
        return q, k
    return tuple(
        dataclasses.replace(each, x=each.rotary.x, norm=None, heads_first=each.tables_heads_first) for each in (q, k)
    )  # type: ignore[return-value]


def _unlike(q: _Heads, k: _Heads) -> str | None:
    a, b = q.rotary, k.rotary
    if (a.rotary_dim, a.interleaved) != (b.rotary_dim, b.interleaved):
        return "queries and keys are rotated in different ways"
    for one, other in ((a.cos, b.cos), (a.sin, b.sin)):
        if not same_value(one, other):
            return f"queries are rotated by {name_of(one)}, keys by {name_of(other)}"
    if q.tables_heads_first != k.tables_heads_first:
        return "queries and keys are rotated in different layouts"
    return None


def _unserved(query: Node, keys: _Write, values: _Write, rotary: Rotary) -> str | None:
    """Why the operator does not take these tensors."""
    q, k, v = tensor_of(query), tensor_of(keys.values), tensor_of(values.values)
    tensors = [q, k, v, tensor_of(keys.cache), tensor_of(values.cache)]
    if any(each.dtype != q.dtype or each.dtype not in DTYPES for each in tensors):
        return f"the kernel takes one dtype of {', '.join(map(str, DTYPES))}, got {[each.dtype for each in tensors]}"
    tables = [tensor_of(each).dtype for each in (rotary.cos, rotary.sin)]
    if any(dtype not in DTYPES for dtype in tables):
        return f"the kernel takes tables of {', '.join(map(str, DTYPES))}, got {tables}"
    length = tensor_of(keys.positions).shape[0]
    expected: list[tuple[Tensor, list[Any]]] = [(k, [q.shape[0], None, length, q.shape[3]]), (v, list(k.shape))]
    expected.append((q, [None, None, length, None]))
    expected += [(each, [k.shape[0], k.shape[1], None, k.shape[3]]) for each in tensors[3:]]
    for tensor, sizes in expected:
        for got, size in zip(tensor.shape, sizes, strict=True):
            if size is not None and not statically_known_true(got == size):
                return f"{describe(tensor)} does not fit {describe(k)}: expected {sizes}"
    if not all(each.is_contiguous() for each in tensors[3:]):
        return "a cache is not contiguous"
    return refuse(problem_of(q, k, rotary.rotary_dim))


def _unfit_tables(q: _Heads, query: Node) -> str | None:
    """Why cos and sin are no tables [L, columns] or [batch, L, columns]."""
    batch, _, length, _ = tensor_of(query).shape
    for table in (q.rotary.cos, q.rotary.sin):
        rows = _table_rows(table, q.tables_heads_first)
        if rows is None:
            return f"{name_of(table)} is {describe(tensor_of(table))}, expected one table for all heads"
        for size, wanted in zip(rows, (batch, length), strict=True):
            if not (statically_known_true(size == 1) or statically_known_true(size == wanted)):
                return f"{name_of(table)} is {describe(tensor_of(table))}, expected entries for {wanted} rows"
    return None


def _table_rows(table: Node, heads_first: bool) -> tuple[int | torch.SymInt, int | torch.SymInt] | None:
    """Sizes of a table's dimensions of the batch and of the tokens; ``None`` if it has one of heads."""
    shape = tensor_of(table).shape
    sizes = [*[1] * (4 - len(shape)), *shape]
    heads, tokens = (sizes[1], sizes[2]) if heads_first else (sizes[2], sizes[1])
    if not 2 <= len(shape) <= 4 or not statically_known_true(heads == 1):
        return None
    return sizes[0], tokens


def _read_elsewhere(values: Node, write: Node) -> str | None:
    """Why rotated keys would still have to be computed."""
    node = values
    reader = write
    while True:
        if any(user is not reader for user in node.users):
            return f"{node.name} is read by others too"
        if node.target not in (aten.permute.default, aten.clone.default, aten.alias.default):
            return None
        reader, source = node, node.args[0]
        assert isinstance(source, Node)
        node = source


def _too_late(fusion: _Fusion) -> str | None:
    """Why the inputs are not known before a result is read."""
    place = {node: index for index, node in enumerate(fusion.query.graph.nodes)}
    last = max(place[node] for node in fusion.inputs)
    for node in fusion.replaced:
        for user in node.users:
            if place[user] <= last:
                return f"{user.name} reads {node.name} before all is known that the kernel takes"
    return None


def _insert(fusion: _Fusion, target: CudaTarget) -> None:
    place = {node: index for index, node in enumerate(fusion.query.graph.nodes)}
    before = max(fusion.inputs, key=place.__getitem__).next
    q, k = (_transposed(before, heads) for heads in (fusion.q, fusion.k))
    rotary = fusion.q.rotary
    cos, sin = (_rows_of_table(before, each, fusion.q.tables_heads_first) for each in (rotary.cos, rotary.sin))
    a, b = fusion.q.norm, fusion.k.norm
    eps, offset = (a.eps, a.weight_offset) if a is not None else (0.0, 0.0)
    weights = [norm.weight if norm is not None else None for norm in (a, b)]
    start, positions = fusion.keys.start, fusion.keys.positions
    if start is not None:
        positions = insert_call(before, aten.reshape.default, (start, [1]))
    config = choose(problem_of(tensor_of(q), tensor_of(k), rotary.rotary_dim))
    tensors = (q, k, fusion.values.values, cos, sin, positions, fusion.keys.cache, fusion.values.cache, *weights)
    numbers = (eps, offset, rotary.rotary_dim, rotary.interleaved, start is not None)
    args = (*tensors, *numbers, *config.to_args(int(supports_pdl(target))))
    call = insert_call(before, torch.ops.etcuda.rotary_cache.default, args)
    for index, node in enumerate(fusion.replaced):
        node.replace_all_uses_with(insert_call(before, operator.getitem, (call, index)))
    log.info(
        "%s: rotary positions of %s and %s%s and writes to %s and %s are one kernel, %s",
        call.name, q.name, k.name, "" if a is None else ", norms in front of them,", fusion.keys.cache.name,
        fusion.values.cache.name, config,
    )  # fmt: skip


def _transposed(before: Node, heads: _Heads) -> Node:
    return heads.x if heads.heads_first else insert_call(before, aten.permute.default, (heads.x, _HEADS_FIRST))


def _rows_of_table(before: Node, table: Node, heads_first: bool) -> Node:
    """The table without its dimension of heads."""
    rank = tensor_of(table).dim()
    if rank == 2:
        return table
    return insert_call(before, aten.squeeze.dim, (table, rank - 3 if heads_first else rank - 2))
