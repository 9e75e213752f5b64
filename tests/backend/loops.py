"""A model with every kind of control flow that is compiled, weights inside of each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.export import ExportedProgram, export

STEPS = 3


class Loops(nn.Module):
    """Weights that require gradients, as a model has them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.repeated, self.mapped, self.cell, self.chosen = (nn.Linear(8, 8) for _ in range(4))

    def step(self, state: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.cell(state) + row)
        return state, state * 2

    def forward(self, x: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        def choose(y: Tensor) -> Tensor:
            return torch.cond(y.sum() > 0, lambda y: self.chosen(y), lambda y: y - 1, (y,))

        last, looped = while_loop(lambda i, y: i < STEPS, lambda i, y: (i + 1, self.repeated(y)), (count, x))
        # Results that share memory are copied, for scan takes none.
        state, states = scan(lambda s, r: tuple(t.clone() for t in self.step(s, r)), x[0] * 0, x)
        mapped = map_rows(lambda row, scale: self.mapped(row[None])[0] * scale, x, x[0].cos())
        return last + 0, looped * 1, state, states, mapped, choose(x)

    def expected(self, x: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        looped = x
        for _ in range(int(count), STEPS):
            looped = self.repeated(looped)
        state, states = torch.zeros_like(x[0]), []
        for row in x:
            state, seen = self.step(state, row)
            states.append(seen)
        chosen = self.chosen(x) if x.sum() > 0 else x - 1
        return torch.tensor(STEPS), looped, state, torch.stack(states), self.mapped(x) * x[0].cos(), chosen


class Joined(Loops):
    """All results as one row."""

    def forward(self, x: Tensor, count: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([result.reshape(-1).float() for result in super().forward(x, count)])


def exported(model: Loops) -> ExportedProgram:
    """Of five rows."""
    return export(model, (torch.randn(5, 8), torch.tensor(0)))
