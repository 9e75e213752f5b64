"""Constants of a delegated program: which bytes they view, what is state, and what costs nothing to store."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterable, Mapping

import torch
from torch.export.exported_program import ExportedProgram

from etcuda.backend.threads import in_threads
from etcuda.backend.weight_bytes import WeightBytes
from etcuda.errors import UnsupportedGraphError
from etcuda.passes.graph.recipes import recipe_of


@dataclasses.dataclass
class StorageEntry:
    """Bytes that one or more constants view.

    Attributes:
        content: the bytes, wherever they are now (often a memory-mapped file); read when hashed and when written out.
        is_mutable: a method of the program writes to it.
        state_name: names the state that methods of one program share; set exactly when ``is_mutable``.
        sha256: digest of the bytes; ``None`` when they are all zeros and nothing is stored.
    """

    content: WeightBytes
    is_mutable: bool
    state_name: str | None
    sha256: bytes | None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.content.nbytes


@dataclasses.dataclass(frozen=True)
class ConstantEntry:
    """A tensor over a storage. Sizes, strides and offset count elements."""

    fqn: str
    storage_index: int
    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int

    @property
    def end(self) -> int:
        """Bytes from the start of the storage to the end of the last element."""
        steps = ((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))
        extent = 0 if 0 in self.sizes else 1 + sum(steps)
        return (self.storage_offset + extent) * self.dtype.itemsize


@dataclasses.dataclass
class ConstantTable:
    """Every constant of a program by fully qualified name, and the storages they view."""

    storages: list[StorageEntry]
    constants: dict[str, ConstantEntry]


def collect_constants(
    program: ExportedProgram,
    state: Mapping[str, str] | None = None,
    known: dict[int, WeightBytes] | None = None,
    weights: bool = True,
) -> ConstantTable:
    """Finds parameters, buffers and lifted constants through the graph signature.

    Tensors that share bytes keep doing so. State whose initial content is all zeros (a KV cache, a recurrent state) is
    recorded as a size; any other constant keeps its bytes.

    Args:
        program: a delegated program.
        state: for each constant that a method of the whole program writes to, the name of that state; ``None``: what
            this program itself writes to is its state.
        known: what other programs, which still live, found in which memory; what this one finds is added. Bytes that
            several programs view are hashed once.
        weights: whether their bytes are hashed, and not those of state alone; ``hash_weights`` does it later.

    Raises:
        UnsupportedGraphError: a constant is not a plain dense tensor with its bytes at hand.
    """
    if state is None:
        state = {name: name for name in program.graph_signature.buffers_to_mutate.values()}
    known = {} if known is None else known
    table = ConstantTable([], {})
    index_of: dict[int, int] = {}
    for fqn, tensor in constant_tensors(program).items():
        _require_plain(fqn, tensor)
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in index_of:
            index_of[key] = len(table.storages)
            if key not in known:
                known[key] = WeightBytes(recipe_of(tensor) or storage, storage.nbytes())
            table.storages.append(StorageEntry(known[key], False, None, None))
        index = index_of[key]
        if fqn in state:
            entry = table.storages[index]
            entry.is_mutable = True
            # Aliased state has one name, the first.
            entry.state_name = entry.state_name or state[fqn]
        table.constants[fqn] = ConstantEntry(
            fqn, index, tensor.dtype, tuple(tensor.size()), tuple(tensor.stride()), int(tensor.storage_offset())
        )
    for entry in table.storages:
        if entry.is_mutable and not entry.content.is_zero():
            entry.sha256 = entry.content.sha256()
    if weights:
        hash_weights([table])
    return table


def hash_weights(tables: Iterable[ConstantTable], stop: threading.Event | None = None) -> None:
    """Fills in the digests of constants that are no state.

    Args:
        tables: of all methods; bytes that several have are hashed once.
        stop: what has not begun when it is set is left out, and some digests are missing then.
    """
    entries = [entry for table in tables for entry in table.storages if not entry.is_mutable]
    contents = list({id(entry.content): entry.content for entry in entries}.values())

    def digest(content: WeightBytes) -> None:
        if stop is None or not stop.is_set():
            content.sha256()

    in_threads([functools.partial(digest, content) for content in contents])
    if stop is None or not stop.is_set():
        for entry in entries:
            entry.sha256 = entry.content.sha256()


def store_what_is_used_in_part(table: ConstantTable, used: Iterable[str]) -> None:
    """Keeps the bytes of zeros of which the constants ``used`` are a part alone, such as a view of a larger buffer.

    The runtime does not allocate a size that neither stored bytes nor constants prove.
    """
    ends: dict[int, int] = {}
    for constant in (table.constants[fqn] for fqn in used):
        ends[constant.storage_index] = max(ends.get(constant.storage_index, 0), constant.end)
    for index, end in ends.items():
        entry = table.storages[index]
        if entry.sha256 is None and end != entry.nbytes:
            entry.sha256 = entry.content.sha256()


def constant_tensors(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and lifted tensor constants that the graph takes as inputs, by fully qualified name."""
    signature = program.graph_signature
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {}
    for fqn in named.values():
        value = program.state_dict.get(fqn, program.constants.get(fqn))
        if not isinstance(value, torch.Tensor):
            raise UnsupportedGraphError(
                f"constant {fqn!r}: expected a tensor in the program's state or constants, got {type(value).__name__}."
            )
        tensors[fqn] = value
    return tensors


def _require_plain(fqn: str, tensor: torch.Tensor) -> None:
    inner = type(tensor.data) if isinstance(tensor, torch.nn.Parameter) else type(tensor)
    if inner is not torch.Tensor or tensor.layout != torch.strided or tensor.is_quantized:
        raise UnsupportedGraphError(
            f"constant {fqn!r}: expected a plain dense tensor, got {inner.__name__} with layout {tensor.layout}. "
            "Unwrap tensor subclasses with torch.export's run_decompositions, or dequantise it."
        )
    if tensor.device.type == "meta" and recipe_of(tensor) is None:
        raise UnsupportedGraphError(
            f"constant {fqn!r} is on the meta device, so its bytes are nowhere. Load its weights before exporting."
        )
