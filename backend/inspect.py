"""Looks into a .pte: what was delegated to etcuda, for which targets, and what it holds."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator

from executorch.exir._serialize._program import deserialize_pte_binary

from etcuda.backend.blob import DTYPE_CODES, read_blob
from etcuda.backend.schema.generated import delegate_generated as schema
from etcuda.errors import BlobError
from etcuda.options import BACKEND_ID


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """A code image: its target, size in bytes, number of kernels, and the names of those for a GPU, sorted.

    ``shared_memory``: bytes a block that ``largest_kernel`` takes, the most of all; a GPU with less refuses the image.
    """

    target: str
    code_kind: str
    isa: str
    nbytes: int
    num_kernels: int
    kernels: tuple[str, ...]
    shared_memory: int
    largest_kernel: str


@dataclasses.dataclass(frozen=True)
class StorageInfo:
    """Bytes of constants. ``key`` is ``None`` for content that is all zeros and not stored."""

    nbytes: int
    key: str | None
    state_name: str | None


@dataclasses.dataclass(frozen=True)
class ValueInfo:
    """An input or output: dtype name, and (least, greatest) size of each dimension."""

    name: str
    dtype: str
    dims: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class DelegateInfo:
    """One delegated part of a method."""

    method: str
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    constants: tuple[str, ...]
    storages: tuple[StorageInfo, ...]
    images: tuple[ImageInfo, ...]
    producers: dict[str, str]

    @property
    def num_kernels(self) -> int:
        """Kernels for the first target, of all parts."""
        return sum(image.num_kernels for image in self.images if image.target == self.images[0].target)


@dataclasses.dataclass(frozen=True)
class MethodInfo:
    """A method: its delegates of etcuda, the operators that others run, and the other backends it uses."""

    name: str
    delegates: tuple[DelegateInfo, ...]
    operators: tuple[str, ...]
    other_backends: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ProgramInfo:
    """A whole program."""

    nbytes: int
    methods: tuple[MethodInfo, ...]

    @property
    def num_kernels(self) -> int:
        """Kernels of all delegates."""
        return sum(delegate.num_kernels for method in self.methods for delegate in method.delegates)


def inspect_program(source: bytes | str | os.PathLike[str]) -> ProgramInfo:
    """Describes a program.

    Args:
        source: the bytes of a ``.pte``, or its path.

    Raises:
        BlobError: not a ``.pte``, or a damaged delegate blob.
        OSError: the file cannot be read.
    """
    data = source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
    if data[4:6] != b"ET":
        raise BlobError(
            f"program: expected an ExecuTorch .pte (identifier 'ET..' at byte 4), got {data[4:8]!r}. "
            "Pass the file that ExecutorchProgramManager.save wrote."
        )
    try:
        return ProgramInfo(len(data), tuple(_methods(data)))
    except BlobError:
        raise
    except Exception as error:  # ExecuTorch's reader trusts the file: damage ends in whatever its bytes lead to
        raise BlobError(
            f"program: expected a whole ExecuTorch .pte, got one that cannot be read "
            f"({type(error).__name__}: {error}); it is truncated or damaged. Export or copy it again."
        ) from error


def _methods(data: bytes) -> Iterator[MethodInfo]:
    program = deserialize_pte_binary(data).program
    for plan in program.execution_plan:
        blobs = [
            program.backend_delegate_data[delegate.processed.index].data
            for delegate in plan.delegates
            if delegate.id == BACKEND_ID
        ]
        yield MethodInfo(
            name=plan.name,
            delegates=tuple(describe(bytes(blob)) for blob in blobs),
            operators=tuple(f"{op.name}.{op.overload}" if op.overload else op.name for op in plan.operators),
            other_backends=tuple(sorted({each.id for each in plan.delegates} - {BACKEND_ID})),
        )


def describe(blob: bytes) -> DelegateInfo:
    """Describes one delegate blob.

    Raises:
        BlobError: see ``read_blob``.
    """
    delegate = read_blob(blob)
    for each in delegate.images or ():
        code = blob[each.offset : each.offset + each.nbytes]
        if hashlib.sha256(code).digest() != bytes(each.sha256):
            raise BlobError(
                f"delegate blob: the code for {_text(each.target)} does not match its SHA-256; "
                "the file is truncated or damaged, export again."
            )
    kinds = {value: name for name, value in vars(schema.CodeKind).items() if not name.startswith("_")}
    return DelegateInfo(
        method=_text(delegate.method),
        inputs=tuple(_value(each) for each in delegate.inputs or ()),
        outputs=tuple(_value(each) for each in delegate.outputs or ()),
        constants=tuple(_text(each.fqn) for each in delegate.constants or ()),
        storages=tuple(
            StorageInfo(
                each.nbytes,
                _text(each.dataKey) if each.dataKey else None,
                _text(each.stateName) if each.isMutable else None,
            )
            for each in delegate.storages or ()
        ),
        images=tuple(
            ImageInfo(
                _text(each.target),
                kinds[each.codeKind],
                _text(each.isa),
                each.nbytes,
                each.numKernels,
                kernel_names(blob[each.offset : each.offset + each.nbytes]),
                each.sharedMemory,
                _text(each.largestKernel),
            )
            for each in delegate.images or ()
        ),
        producers={_text(each.key): _text(each.value) for each in delegate.producers or ()},
    )


def kernel_names(image: bytes) -> tuple[str, ...]:
    """Names of the GPU kernels in a code image, sorted: sections of cubins, entries of PTX."""
    found = re.findall(rb"\0\.text\.([A-Za-z_]\w*)|\.entry\s+([A-Za-z_]\w*)", image)
    return tuple(sorted({(section or entry).decode() for section, entry in found}))


def _value(record: schema.ValueT) -> ValueInfo:
    names = {code: str(dtype).removeprefix("torch.") for dtype, code in DTYPE_CODES.items()}
    return ValueInfo(_text(record.name), names[record.dtype], tuple((dim.min, dim.max) for dim in record.dims or ()))


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
