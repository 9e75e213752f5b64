"""What is known of a method before ExecuTorch rewrites it, kept for the stages that see only its parts."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.exported_program import ExportedProgram

from etcuda.passes.repeats.fold import Folded


@dataclasses.dataclass(frozen=True)
class OutsideUse:
    """A buffer that a method uses, or may use, outside of our delegates.

    Attributes:
        reason: why no delegate has it for itself.
        is_mutated: the method writes to it.
        shape: its sizes.
        dtype: its dtype.
    """

    reason: str
    is_mutated: bool
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclasses.dataclass
class MethodNotes:
    """What the hooks of one export tell each other about one method.

    Attributes:
        ranges: bounds of symbols and expressions as ``torch.export`` declared them; ExecuTorch's lowering changes them.
        dims: bounds of the dynamic dimensions of the method's inputs, by position and dimension, as declared.
        conditions: on sizes, as ``torch.export`` checks them.
        zeros: buffers whose content is all zeros.
        folded: the repetitions that were taken out of the method.
        outside: buffers that some of the method's operators use outside of our delegates, by name.
    """

    ranges: dict[Any, Any] = dataclasses.field(default_factory=dict)
    dims: dict[tuple[int, int], Any] = dataclasses.field(default_factory=dict)
    conditions: list[Any] = dataclasses.field(default_factory=list)
    zeros: frozenset[str] = frozenset()
    outside: dict[str, OutsideUse] = dataclasses.field(default_factory=dict)
    folded: Folded | None = None


# A method's fake tensors have one mode of their own through all of ExecuTorch's lowering, and a delegate's graph still
# has it; nothing else tells whose part a delegated program is.
_NOTES: weakref.WeakKeyDictionary[FakeTensorMode, MethodNotes] = weakref.WeakKeyDictionary()


def notes_of(program: ExportedProgram) -> MethodNotes | None:
    """The notes of the method that a program is, or is a part of; ``None`` if there are none."""
    mode = _mode_of(program)
    return None if mode is None else _NOTES.get(mode)


def take_notes(program: ExportedProgram) -> MethodNotes:
    """The notes of a method, empty ones if there are none yet."""
    mode = _mode_of(program)
    return MethodNotes() if mode is None else _NOTES.setdefault(mode, MethodNotes())


def _mode_of(program: ExportedProgram) -> FakeTensorMode | None:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch._subclasses.FakeTensor):
            return value.fake_mode
    return None
