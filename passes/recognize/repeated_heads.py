"""Keys and values whose heads were repeated for each query head of a group: the tensor before.

It proves that every repeated head is equal to the head of the tensor that it returns, by shape; in doubt it returns
``None``. It changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from etcuda.passes.graph.meta import tensor_of

aten = torch.ops.aten


def before_repeat(node: Node) -> Node | None:
    """``x`` of ``reshape(expand(unsqueeze(x, 2), [b, heads, group, length, width]), [b, heads * group, ...])``."""
    reshaped = _behind_clones(node)
    if reshaped.target not in (aten.reshape.default, aten.view.default):
        return None
    expanded = _behind_clones(reshaped.args[0])
    if expanded.target is not aten.expand.default:
        return None
    single: Any = expanded.args[0]
    if single.target is not aten.unsqueeze.default or single.args[1] % single.meta["val"].dim() != 2:
        return None
    original: Node = single.args[0]
    whole, before = tensor_of(expanded), tensor_of(original)
    if before.dim() != 4 or whole.dim() != 5 or [*whole.shape[:2], *whole.shape[3:]] != list(before.shape):
        return None
    heads = before.shape[1] * whole.shape[2]
    if list(tensor_of(node).shape) != [before.shape[0], heads, before.shape[2], before.shape[3]]:
        return None
    return original


def _behind_clones(node: Any) -> Node:
    while node.target is aten.clone.default:
        node = node.args[0]
    found: Node = node
    return found
