"""A graph node as the rules see it: operator, named arguments with fake tensors in place of nodes, results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.graph.calls import arguments
from etcuda.shims import Side


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a node is not claimed.

    Attributes:
        reason: one sentence, with the actual values in it.
        values: the same values by name, for tools.
    """

    reason: str
    values: dict[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class NodeView:
    """One call of an ATen operator.

    Attributes:
        node: the graph's node.
        op: the operator, an ATen overload even where the node holds an Edge one.
        config: target and options.
    """

    node: Node
    op: torch._ops.OpOverload
    config: BackendConfig

    @property
    def side(self) -> Side:
        """Which runtime the target's code links against."""
        return "host" if self.config.is_host else "cuda"

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """Every argument of the schema by name, defaults filled in, nodes replaced by their fake values."""
        given = arguments(self.node, self.op)
        return {name: torch.fx.map_arg(value, lambda n: n.meta.get("val")) for name, value in given.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """The fake tensor passed as argument ``name``; a node without one is a malformed graph (``TypeError``)."""
        value = self.arguments[name]
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{self.op} argument {name!r}: expected a tensor, got {type(value).__name__}")
        return value

    @property
    def input_tensors(self) -> Iterator[torch.Tensor]:
        """Fake tensors among the inputs."""
        return _tensors([n.meta.get("val") for n in self.node.all_input_nodes])

    @property
    def result_tensors(self) -> Iterator[torch.Tensor]:
        """Fake tensors among the results."""
        return _tensors(self.node.meta.get("val"))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
