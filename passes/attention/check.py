"""The option ``check_attention``: a call and what it is rewritten to are computed on random numbers and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from etcuda.kernels.attention.reference import attention_reference
from etcuda.passes.attention.call import AttentionCall
from etcuda.passes.base import NodeError
from etcuda.torch_private import hint

_MOST_ERROR = 1e-3


def check_rewrite(node: Node, before: AttentionCall, after: AttentionCall) -> None:
    """Compares two forms of one call at the sizes of the example inputs.

    Integers that reach a mask from outside the graph are random positions below ``L_kv``.

    Raises:
        NodeError: the results differ.
    """
    values = _Values(hint(before.k.meta["val"].shape[2]))
    results = []
    for call in (before, after):
        q, k, v = (values.of(each) for each in (call.q, call.k, call.v))
        mask, kv_len, positions = (
            None if each is None else values.computed(each) for each in (call.mask, call.kv_len, call.positions)
        )
        sinks = None if call.sinks is None else values.of(call.sinks)
        numbers = (call.scale, call.causal, call.window, call.softcap)
        results.append(attention_reference(q, k, v, mask, kv_len, positions, *numbers, sinks, call.ring))
    error = float((results[0].double() - results[1].double()).norm() / results[0].double().norm().clamp(min=1e-30))
    if not error <= _MOST_ERROR:
        raise NodeError(
            node,
            f"check_attention: expected the rewritten call to be equal, got a relative error of {error:.1e} with "
            f"causal={after.causal}, window={after.window}; please report it with the model",
        )


class _Values:
    """Numbers for nodes, the same whenever they are asked for."""

    def __init__(self, l_kv: int) -> None:
        self._l_kv = l_kv
        self._random = torch.Generator().manual_seed(0)
        self._known: dict[Node, Any] = {}

    def of(self, node: Node) -> Any:
        """Random numbers; through views, so that heads that are repeated are equal."""
        if node not in self._known:
            is_view = node.op == "call_function" and node.target in _VIEWS
            self._known[node] = self._run(node, self.of) if is_view else self._made_up(node)
        return self._known[node]

    def computed(self, node: Node) -> Any:
        """Computed from sizes, constants in the graph, and random inputs."""
        if node not in self._known:
            is_call = node.op == "call_function" and not isinstance(node.target, torch._ops.HigherOrderOperator)
            self._known[node] = self._run(node, self.computed) if is_call else self._made_up(node)
        return self._known[node]

    def _run(self, node: Node, argument: Callable[[Node], Any]) -> Any:
        value = node.meta["val"]
        if isinstance(value, torch.SymInt | torch.SymBool):
            return hint(value)
        assert callable(node.target)
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), argument)
        return node.target(*args, **kwargs)

    def _made_up(self, node: Node) -> Any:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return hint(value) if isinstance(value, torch.SymInt | torch.SymBool) else value
        shape = [hint(size) for size in value.shape]
        if value.dtype.is_floating_point:
            return torch.randn(shape, generator=self._random).to(value.dtype)
        most = 2 if value.dtype == torch.bool else self._l_kv
        return torch.randint(0, max(most, 1), shape, generator=self._random).to(value.dtype)


_VIEWS = (
    torch.ops.aten.reshape.default,
    torch.ops.aten.view.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.unsqueeze.default,
)
