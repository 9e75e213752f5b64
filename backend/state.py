"""State of a program: what any of its methods writes to, and all of them share by name."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch.export.exported_program import ExportedProgram

from etcuda.backend.constants import ConstantTable, StorageEntry, constant_tensors
from etcuda.errors import StateError
from etcuda.options import BACKEND_ID
from etcuda.partitioner.notes import OutsideUse


@dataclasses.dataclass(frozen=True)
class BufferUse:
    """A buffer that a method uses.

    Attributes:
        method: the method's name.
        name: the buffer's fully qualified name.
        shape: its sizes.
        dtype: its dtype.
        is_mutated: the method writes to it.
        device: where our delegate of the method runs.
        outside: why no delegate of ours has it for itself; ``None`` if one has.
    """

    method: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_mutated: bool
    device: str | None
    outside: str | None


def buffers_of(method: str, program: ExportedProgram, device: str | None) -> list[BufferUse]:
    """Buffers of a program, or of a part of it, that it uses."""
    signature = program.graph_signature
    mutated = set(signature.buffers_to_mutate.values())
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    uses = []
    for placeholder, name in signature.inputs_to_buffers.items():
        node = nodes[placeholder]
        if node.users or name in mutated:
            shape, dtype = tuple(node.meta["val"].shape), node.meta["val"].dtype
            uses.append(BufferUse(method, name, shape, dtype, name in mutated, device, None))
    return uses


def outside_uses(method: str, outside: Mapping[str, OutsideUse]) -> list[BufferUse]:
    """Buffers that a method uses outside of our delegates."""
    return [
        BufferUse(method, name, use.shape, use.dtype, use.is_mutated, None, use.reason) for name, use in outside.items()
    ]


def state_names(uses: Iterable[BufferUse]) -> frozenset[str]:
    """Names of the buffers that any method writes to."""
    return frozenset(use.name for use in uses if use.is_mutated)


def check_uses(uses: Sequence[BufferUse]) -> None:
    """Checks that methods can share the state that they name, and warns of names that differ by a prefix alone.

    Raises:
        StateError: a buffer that a method writes to and another one uses does not lie with our delegates in both, on
            one device, in one shape and dtype.
    """
    for name in sorted(state_names(uses)):
        of_name = [use for use in uses if use.name == name]
        if len({use.method for use in of_name}) > 1:
            _check_one(name, of_name)
    for message in _near_misses(uses):
        warnings.warn(message, UserWarning, stacklevel=2)


def _check_one(name: str, uses: Sequence[BufferUse]) -> None:
    writers = sorted({use.method for use in uses if use.is_mutated})
    shared = f"buffer {name!r} is state that methods {_listed(use.method for use in uses)} share"
    shared += f" (written by {_listed(writers)})"
    for use in uses:
        if use.outside is not None:
            raise StateError(
                f"{shared}; expected a delegate of etcuda to have it in each method, but method {use.method!r} leaves "
                f"it to others: {use.outside}. Each method would have a content of its own. Lower every method with "
                "CudaPartitioner, and let what cannot be delegated read a computed copy, as (buffer + 0); or give the "
                "buffers different names."
            )
    layouts = {(use.shape, use.dtype): use.method for use in uses}
    if len(layouts) > 1:
        seen = "; ".join(f"{list(shape)} {dtype} in {method!r}" for (shape, dtype), method in layouts.items())
        raise StateError(
            f"{shared}; expected one shape and dtype, got {seen}. Export the methods from one model, or give the "
            "buffers different names."
        )
    devices = {use.device: use.method for use in uses}
    if len(devices) > 1:
        seen = ", ".join(f"{device} in {method!r}" for device, method in devices.items())
        raise StateError(f"{shared}; expected one device, got {seen}. Lower all of them for one target.")


def name_state(programs: Sequence[ExportedProgram], names: frozenset[str]) -> list[dict[str, str]]:
    """For each delegated program: its constants that are state, each with the name that all methods share it by.

    State is one if it has one name or lies in one storage: a method may write to a buffer, another read a view of it.

    Args:
        programs: of all methods.
        names: from ``state_names``.
    """
    tensors = [constant_tensors(program) for program in programs]
    keys = [{name: tensor.untyped_storage()._cdata for name, tensor in table.items()} for table in tensors]
    group: dict[object, str] = {}
    for table in keys:
        for name, storage in table.items():
            if name in names and name not in group:
                group[name] = group.get(storage, name)
            if name in group:
                _join(group, group.setdefault(storage, group[name]), group[name])
    return [{name: group[storage] for name, storage in table.items() if storage in group} for table in keys]


def _join(group: dict[object, str], kept: str, gone: str) -> None:
    if kept != gone:
        group.update({key: kept for key, name in group.items() if name == gone})


def check_content(tables: Sequence[tuple[str, ConstantTable]]) -> None:
    """Checks that state starts with the same content in every method.

    Args:
        tables: method and constants of each delegated program.

    Raises:
        StateError: it does not.
    """
    first: dict[str, tuple[str, StorageEntry]] = {}
    for method, table in tables:
        for entry in table.storages:
            if entry.state_name is None:
                continue
            other, seen = first.setdefault(entry.state_name, (method, entry))
            if (seen.nbytes, seen.sha256) != (entry.nbytes, entry.sha256):
                raise StateError(
                    f"buffer {entry.state_name!r} is state that methods {other!r} and {method!r} share; expected one "
                    f"initial content, got {_content(seen)} and {_content(entry)}. Export the methods from one model, "
                    "before it runs, or give the buffers different names."
                )


def _content(entry: StorageEntry) -> str:
    kind = "of zeros" if entry.sha256 is None else f"with SHA-256 {entry.sha256.hex()[:12]}"
    return f"{entry.nbytes} bytes {kind}"


def check_program(methods: Mapping[str, ExportedProgram]) -> None:
    """Checks the state of a whole lowered program, methods without a delegate of ours too.

    Raises:
        StateError: see ``check_uses``.
    """
    uses = []
    has_delegate = False
    for method, program in methods.items():
        delegates = [m for m in program.graph_module.modules() if isinstance(m, LoweredBackendModule)]
        for delegate in delegates:
            is_ours = delegate.backend_id == BACKEND_ID
            has_delegate = has_delegate or is_ours
            found = buffers_of(method, delegate.original_module, None)
            reason = None if is_ours else f"backend {delegate.backend_id} has it"
            uses += [dataclasses.replace(use, outside=reason) for use in found]
        left = buffers_of(method, program, None)
        uses += [dataclasses.replace(use, outside="ExecuTorch's own operators use it") for use in left]
    if has_delegate:
        check_uses(uses)


def _near_misses(uses: Sequence[BufferUse]) -> list[str]:
    """Pairs of methods whose names for a buffer differ by a prefix, as a wrapper's, of which one is written to."""
    names = {method: {use.name for use in uses if use.method == method} for method in {use.method for use in uses}}
    messages = []
    for a in uses:
        for b in uses:
            same = a.method != b.method and (a.shape, a.dtype) == (b.shape, b.dtype)
            if not same or not b.name.endswith(f".{a.name}") or not (a.is_mutated or b.is_mutated):
                continue
            if a.name not in names[b.method] and b.name not in names[a.method]:
                messages.append(
                    f"methods {a.method!r} and {b.method!r} do not share buffer {a.name!r} of the one and {b.name!r} "
                    "of the other: state is shared by name. If it is one buffer, export both methods from modules in "
                    "which it has the same name."
                )
    return list(dict.fromkeys(messages))


def _listed(methods: Iterable[str]) -> str:
    return ", ".join(repr(method) for method in dict.fromkeys(methods))
