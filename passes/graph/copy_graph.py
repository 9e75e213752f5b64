"""A program to rewrite, apart from the one it was copied from."""

from __future__ import annotations

import copy

import torch
from torch.export.exported_program import ExportedProgram


def copy_graph(program: ExportedProgram) -> ExportedProgram:
    """A deep copy that shares every tensor of the state and the constants with the original."""
    tensors = [*program.state_dict.values(), *program.constants.values()]
    return copy.deepcopy(program, {id(tensor): tensor for tensor in tensors if isinstance(tensor, torch.Tensor)})
