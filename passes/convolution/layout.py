"""Copies between layouts, where convolutions want channels innermost, and as few of them as can be."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from etcuda.kernels.convolution.check import is_channels_last
from etcuda.passes.graph.calls import insert_call
from etcuda.passes.graph.meta import compute_meta, tensor_of

aten = torch.ops.aten

# Operators whose results have the layout of what they read, whatever it is.
_ANY_LAYOUT = frozenset(
    {
        aten._adaptive_avg_pool2d.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.abs.default,
        aten.add.Scalar,
        aten.add.Tensor,
        aten.amax.default,
        aten.avg_pool2d.default,
        aten.cat.default,
        aten.clamp.default,
        aten.constant_pad_nd.default,
        aten.div.Tensor,
        aten.elu.default,
        aten.exp.default,
        aten.gelu.default,
        aten.hardsigmoid.default,
        aten.hardswish.default,
        aten.hardtanh.default,
        aten.leaky_relu.default,
        aten.max_pool2d_with_indices.default,
        aten.maximum.default,
        aten.mean.dim,
        aten.minimum.default,
        aten.mul.Scalar,
        aten.mul.Tensor,
        aten.neg.default,
        aten.relu.default,
        aten.sigmoid.default,
        aten.silu.default,
        aten.sub.Tensor,
        aten.tanh.default,
        aten.upsample_bilinear2d.vec,
        aten.upsample_nearest2d.vec,
    }
)


class Layouts:
    """The copies of one graph. First every convolution gets its own; ``settle`` then takes away those without need."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._wanted: set[Node] = set()
        # A copy in the layout that a value had before, and the value with channels innermost.
        self._restored: dict[Node, Node] = {}

    def channels_last(self, before: Node, value: Node) -> Node:
        """A copy of ``value`` [N, C, H, W] with channels innermost, in front of ``before``."""
        copy = insert_call(before, aten.clone.default, (value,), memory_format=torch.channels_last)
        self._wanted.add(copy)
        return copy

    def replace(self, old: Node, new: Node, was_channels_last: bool) -> None:
        """Puts ``new``, with channels innermost, where ``old`` was, in the layout that ``old`` had."""
        if was_channels_last or tensor_of(new).is_contiguous():
            old.replace_all_uses_with(new)
        else:
            self._restore(old, new, old.replace_all_uses_with)

    def settle(self) -> None:
        """Moves copies to where channels innermost are of no use any more, and removes those that undo another."""
        for node in list(self._graph.nodes):
            if node in self._wanted:
                source = node.args[0]
                source = self._restored.get(source, source)
                if is_channels_last(tensor_of(source)):
                    node.replace_all_uses_with(source)
                    self._graph.erase_node(node)
            elif node.op == "call_function":
                self._pass_through(node)
        for copy in reversed(self._restored):
            if not copy.users:
                self._graph.erase_node(copy)

    def _pass_through(self, node: Node) -> None:
        before = node.meta.get("val")
        if node.target is operator.getitem:
            compute_meta(node)
        elif node.target not in _ANY_LAYOUT or not self._is_last_behind(node):
            return
        else:
            node.args = torch.fx.map_arg(node.args, lambda each: self._restored.get(each, each))
            compute_meta(node)
        after = node.meta["val"]
        if isinstance(before, Tensor) and not after.is_contiguous() and before.is_contiguous():
            users = list(node.users)

            def redirect(copy: Node) -> None:
                for user in users:
                    user.replace_input_with(node, copy)

            self._restore(None, node, redirect)

    def _is_last_behind(self, node: Node) -> bool:
        """Whether all images that a node reads have channels innermost behind their copies, and one has a copy."""
        if not any(source in self._restored for source in node.all_input_nodes):
            return False
        for source in node.all_input_nodes:
            value = self._restored.get(source, source).meta.get("val")
            if isinstance(value, Tensor) and value.dim() > 1 and not is_channels_last(value):
                return False
        return True

    def _restore(self, old: Node | None, value: Node, redirect: Any) -> None:
        following = value.next if old is None else old
        copy = insert_call(following, aten.clone.default, (value,), memory_format=torch.contiguous_format)
        self._restored[copy] = value
        redirect(copy)
