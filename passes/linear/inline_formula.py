"""Products and look-ups that no kernel serves become their formula, for Inductor to generate code."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from etcuda.kernels.linear.reference import embedding_reference, linear_reference
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.linear.call import STORED, LinearCall, format_of_embedding


def inline_linear(call: LinearCall) -> None:
    """Replaces a product by its formula."""
    call = call.now()
    formula: Callable[..., Tensor] = functools.partial(linear_reference, call.weight_format.format_type)
    group_size, activation_dtype = call.group_size, call.activation_dtype
    tensors = [call.x, *call.stored, call.bias]
    _inline(call.node, tensors, lambda *values: formula(*values, group_size, activation_dtype))


def inline_embeddings(module: GraphModule) -> int:
    """Replaces every look-up in a graph by its formula; returns how many there were."""
    changed = 0
    for node in list(module.graph.nodes):
        weight_format = format_of_embedding(node)
        if weight_format is None:
            continue
        given = arguments(node)
        tensors = [given["indices"], *(given[name] for name in STORED)]
        formula = functools.partial(embedding_reference, weight_format.format_type)
        _inline(node, tensors, functools.partial(_look_up, formula, given["group_size"], given["dtype"]))
        changed += 1
    return changed


def _look_up(formula: Callable[..., Tensor], group_size: int, dtype: torch.dtype, *tensors: Tensor | None) -> Tensor:
    return formula(*tensors, group_size).to(dtype)


def _inline(node: Node, tensors: list[Node | None], function: Callable[..., Tensor]) -> None:
    """Replaces a call by ``function``, which takes all tensors, absent ones too."""

    def of_present(*present: Tensor) -> Tensor:
        values = iter(present)
        return function(*(None if tensor is None else next(values) for tensor in tensors))

    inline_function(node, of_present, *(tensor for tensor in tensors if tensor is not None))
