"""Small models that repeat, or seem to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export


class Layer(nn.Module):
    """A residual of two products with a norm before them; ``scale`` is a constant of the graph."""

    def __init__(self, dim: int = 8, hidden: int = 12, scale: float = 0.5, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, dtype=dtype)
        self.down = nn.Linear(hidden, dim, dtype=dtype)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        hidden = torch.nn.functional.silu(self.up(normed.to(self.up.weight.dtype)))
        return x + self.down(hidden).to(x.dtype) * self.scale


class Tanh(nn.Module):
    """Another kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tanh(self.product(x)).cumsum(-1)


class Cached(nn.Module):
    """Writes a row of its cache and reads all of it."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 8)
        self.register_buffer("cache", torch.zeros(6, 8))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.cache.index_copy_(0, position, self.product(x))
        return x + self.cache.sum(0)


class Branching(nn.Module):
    """Chooses by what is in its input."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return torch.cond(y.sum() > 0, lambda y: (y * 2).sin(), lambda y: (y - 1).cos(), (y,)) + x


class Stack(nn.Module):
    """Layers one behind the other, between two products."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x) if position is None else layer(x, position)
        return self.last(x)


def program_of(model: nn.Module, *inputs: Tensor, dynamic: bool = False) -> ExportedProgram:
    """The functional graph of a model; ``dynamic``: of any number of rows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter.requires_grad_(False))
    shapes = ({0: Dim("rows", min=2, max=64)},) if dynamic else None
    program = export(model.eval(), inputs or (torch.ones(5, 4),), dynamic_shapes=shapes).run_decompositions({})
    for node in reversed(program.graph.nodes):
        # Checks, which a delegated graph has none of.
        if node.op in ("call_module", "call_function") and "val" not in node.meta:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


MODELS: dict[str, Callable[[], ExportedProgram]] = {
    "layers": lambda: program_of(Stack(*(Layer() for _ in range(5)))),
    "dynamic": lambda: program_of(Stack(*(Layer() for _ in range(5))), dynamic=True),
    "two kinds": lambda: program_of(Stack(*(kind() for _ in range(4) for kind in (Layer, Tanh)))),
    "nested": lambda: program_of(Stack(*(kind() for _ in range(3) for kind in (Layer, Layer, Layer, Layer, Tanh)))),
    "branches": lambda: program_of(Stack(*(Branching() for _ in range(4)))),
    "another in the middle": lambda: program_of(
        Stack(*(Layer() for _ in range(4)), Layer(scale=0.25), *(Layer() for _ in range(4)))
    ),
    "another at the end": lambda: program_of(Stack(*(Layer() for _ in range(4)), Layer(hidden=10))),
    "state": lambda: program_of(Stack(*(Cached() for _ in range(4))), torch.ones(2, 4), torch.tensor([3, 1])),
}
