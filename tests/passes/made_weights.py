"""Weights that a program after the passes only describes, made, so that it can be run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.export import ExportedProgram

from etcuda.passes.graph.recipes import pieces_of, recipe_of


def made(weight: Tensor) -> Tensor:
    """The weight with its bytes."""
    if recipe_of(weight) is None:
        return weight
    whole = torch.cat([piece.flatten() for piece in pieces_of(weight)]).reshape(weight.shape)
    return torch.nn.Parameter(whole, requires_grad=False)


@contextlib.contextmanager
def made_weights(program: ExportedProgram) -> Iterator[ExportedProgram]:
    """The program with all bytes of its weights, inside."""
    tables = (program.state_dict, program.constants)
    before = [dict(table) for table in tables]
    for table in tables:
        table.update({name: made(value) for name, value in table.items() if isinstance(value, Tensor)})
    try:
        yield program
    finally:
        for table, held in zip(tables, before, strict=True):
            table.update(held)
