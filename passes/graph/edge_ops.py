"""The Edge dialect's operators, and the ATen ones that they stand for."""

from __future__ import annotations

import torch

from etcuda.passes.graph.exempt_ops import exempted
from etcuda.torch_private import behind_edge

aten = torch.ops.aten


def underlying(target: object) -> torch._ops.OpOverload | None:
    """The operator behind a call's target: Edge and ATen overloads alike; ``None`` for anything else.

    Operators that carry a dim order are given as the ATen operator that takes a memory format, and those with a name of
    ours as the ones that they stand for.
    """
    op = behind_edge(target)
    if not isinstance(op, torch._ops.OpOverload):
        return None
    return DIM_ORDER_OPS.get(str(op)) or exempted(op)


# Keyed by name: the left-hand operators exist once executorch.exir is imported.
DIM_ORDER_OPS: dict[str, torch._ops.OpOverload] = {
    "dim_order_ops._to_dim_order_copy.default": aten._to_copy.default,
    "dim_order_ops._clone_dim_order.default": aten.clone.default,
    "dim_order_ops._empty_dim_order.default": aten.empty.memory_format,
}

# Each reads its input through new sizes and strides; without the copy it is a view.
VIEW_OF_COPY: dict[torch._ops.OpOverload, torch._ops.OpOverload] = {
    aten.alias_copy.default: aten.alias.default,
    aten.as_strided_copy.default: aten.as_strided.default,
    aten.detach_copy.default: aten.alias.default,
    aten.diagonal_copy.default: aten.diagonal.default,
    aten.expand_copy.default: aten.expand.default,
    aten.permute_copy.default: aten.permute.default,
    aten.select_copy.int: aten.select.int,
    aten.slice_copy.Tensor: aten.slice.Tensor,
    aten.split_copy.Tensor: aten.split.Tensor,
    aten.split_with_sizes_copy.default: aten.split_with_sizes.default,
    aten.squeeze_copy.default: aten.squeeze.default,
    aten.squeeze_copy.dim: aten.squeeze.dim,
    aten.squeeze_copy.dims: aten.squeeze.dims,
    aten.t_copy.default: aten.t.default,
    aten.transpose_copy.int: aten.transpose.int,
    aten.unbind_copy.int: aten.unbind.int,
    aten.unfold_copy.default: aten.unfold.default,
    aten.unsqueeze_copy.default: aten.unsqueeze.default,
    aten.view_copy.default: aten.reshape.default,
}

# Checks that the exporter wrote into the graph; the runtime checks its inputs itself.
ASSERTIONS: frozenset[torch._ops.OpOverload] = frozenset(
    {
        aten._assert_async.msg,
        aten._assert_scalar.default,
        aten._assert_tensor_metadata.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)
