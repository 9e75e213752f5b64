"""Reading GGUF files with the ``gguf`` package: quantised tensors become our types as they are."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etcuda.errors import GgufError, WeightFormatError
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.registry import find
from etcuda.kernels.weights.gguf_blocks import BLOCK_TYPES, BlockType
from etcuda.kernels.weights.gguf_parts import check_part, check_total, other_parts
from etcuda.kernels.weights.renamed import renamed_keyword
from etcuda.read_memory import read_memory

try:
    import gguf
except ImportError as _missing:
    raise GgufError(
        "reading GGUF files needs the package gguf, which is not installed. Run: pip install 'etcuda[gguf]'"
    ) from _missing

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK = 1 << 20  # Bytes of the file that are repacked at a time.
# What the reader raises on damaged bytes, and on a file that it cannot open.
_DAMAGE = (ValueError, IndexError, KeyError, OverflowError, TypeError, OSError, MemoryError)


class GgufFile:
    """An open GGUF file, with the other parts of its model if there are any. It is mapped, not read: opening costs the
    header.

    Attributes:
        path: of the file; of a model in several files the first.
        architecture: ``general.architecture``, or "" if the file does not say.

    Raises:
        GgufError: it cannot be opened, is not GGUF, is damaged or truncated, or is big-endian; a tensor has a type
            that the ``gguf`` package does not know; or a part is missing or belongs to another model.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        reader = _open(self.path)
        self._fields = reader.fields
        self._tensors: dict[str, Any] = {}
        self._paths: dict[str, str] = {}  # Of the part that holds a tensor.
        self._add(reader, self.path)
        others = other_parts(self.path, self.field)
        for number, part in enumerate(others, start=1):
            reader = _open(part)
            check_part(part, functools.partial(_contents, part, reader.fields), number, len(others) + 1)
            self._add(reader, part)
        if others:
            check_total(self.path, self.field, len(self._tensors))
        self.architecture = str(self.field("general.architecture") or "")

    def _add(self, reader: Any, path: str) -> None:
        for tensor in reader.tensors:
            if tensor.name in self._tensors:
                raise GgufError(
                    f"{path}: {tensor.name}: expected each tensor once, got it in {self._paths[tensor.name]} too. "
                    "Download the parts again."
                )
            self._tensors[tensor.name] = tensor
            self._paths[tensor.name] = path

    @property
    def types(self) -> Mapping[str, str]:
        """GGUF type of each tensor, by name: ``{"token_embd.weight": "Q6_K"}``."""
        return {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor as PyTorch has it, [N, K] for a weight.

        Raises:
            GgufError: there is none of that name.
        """
        return tuple(int(size) for size in reversed(self._find(name).shape))

    def format(self, name: str) -> GroupFormat | None:
        """The format that a tensor is read in; ``None`` for a plain one.

        Raises:
            GgufError: there is none of that name.
        """
        block = BLOCK_TYPES.get(self._find(name).tensor_type.name)
        return None if block is None else block.format

    def field(self, key: str) -> Any:
        """A value of the header, or ``None``."""
        return _contents(self.path, self._fields, key)

    @renamed_keyword("activation", "activation_dtype")
    def read(self, name: str, activation_dtype: str = "int8", dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """A tensor: our type of a quantised one, with ``dtype`` and ``activation_dtype`` (see ``CoalescedTensor``); of
        F32, F16 and BF16 a plain one in that dtype.

        Raises:
            GgufError: there is none of that name, or its type or shape is not served; the message has the name.
        """
        tensor = self._find(name)
        gguf_type = tensor.tensor_type.name
        if gguf_type in _FLOATS:
            return torch.from_numpy(np.array(tensor.data)).view(_FLOATS[gguf_type]).reshape(self.shape(name))
        block = BLOCK_TYPES.get(gguf_type)
        if block is None:
            known = ", ".join([*_FLOATS, *BLOCK_TYPES])
            raise GgufError(
                f"{self._paths[name]}: {name}: expected one of the types {known}, got {gguf_type}. Requantise the file."
            )
        shape = self.shape(name)
        if len(shape) not in (2, 3):
            raise GgufError(
                f"{self._paths[name]}: {name}: expected a quantised weight [N, K] or [experts, N, K], got shape "
                f"{list(shape)}."
            )
        try:
            return _from_blocks(tensor.data, block, shape, name, activation_dtype, dtype)
        except WeightFormatError as problem:
            raise GgufError(f"{self._paths[name]}: {problem}") from problem

    def _find(self, name: str) -> Any:
        if name not in self._tensors:
            raise GgufError(
                f"{self.path}: {name}: expected a tensor of the file, got a name that none of its {len(self._tensors)} "
                "tensors has."
            )
        return self._tensors[name]


@renamed_keyword("activation", "activation_dtype")
def read_gguf(
    path: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    *,
    activation_dtype: str = "int8",
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Tensor]:
    """Tensors of a GGUF file by their names there: quantised ones as our types, the others in the file's dtype.

    Args:
        path: of the file, or of the first of several.
        names: which tensors; by default all.
        activation_dtype: "int8" or "exact", of the quantised ones.
        dtype: of the quantised ones.

    Raises:
        GgufError: the file is damaged, a name is not in it, or a tensor's type is not served.
    """
    file = GgufFile(path)
    return {name: file.read(name, activation_dtype, dtype) for name in (file.types if names is None else names)}


def _from_blocks(
    data: Any, block: BlockType, shape: tuple[int, ...], name: str, activation_dtype: str, dtype: torch.dtype
) -> Tensor:
    n, k = math.prod(shape[:-1]), shape[-1]
    stored = block.format
    stored.check_size(shape, name)
    components = {each: torch.empty(size, dtype=kept) for each, (size, kept) in stored.components(n, k).items()}
    nbytes = data.shape[-1]
    rows = max(1, _CHUNK // nbytes)
    chunks = read_memory(data.ctypes.data, data.nbytes, rows * nbytes)
    for start, chunk in zip(range(0, n, rows), chunks, strict=True):
        # A copy: what was read is good until the next, or is the mapped file, which is read-only.
        raw = torch.frombuffer(bytearray(chunk), dtype=torch.uint8).reshape(-1, k // block.weights, block.nbytes)
        for component, tensor in block.read(raw).items():
            components[component][start : start + rows] = tensor
    for component, (size, _) in stored.components(*shape).items():
        components[component] = components[component].reshape(size)
    tensor_type = find(stored.name).tensor_type
    made: Tensor = tensor_type.from_components(components, stored.group_size, activation_dtype, dtype, name)
    return made


def _open(path: str) -> Any:
    try:
        reader = _Reader(path)
    except GgufError as problem:
        raise GgufError(f"{path}: {problem}") from problem
    except _DAMAGE as problem:
        raise GgufError(
            f"{path}: expected a GGUF file, got bytes that cannot be read as one: {problem}. Is the download complete?"
        ) from problem
    if reader.byte_order == "S":
        raise GgufError(f"{path}: expected a little-endian file, got a big-endian one. Convert it.")
    return reader


def _contents(path: str, fields: Mapping[str, Any], key: str) -> Any:
    found = fields.get(key)
    try:
        return None if found is None else found.contents()
    except _DAMAGE as problem:
        raise GgufError(f"{path}: {key}: expected a value, got bytes that are none: {problem}.") from problem


class _Reader(gguf.GGUFReader):
    """The package's reader, which does not read past the end and checks what a tensor is said to be."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, and byte {end} is asked for")
        return super()._get(offset, dtype, count, override_order)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        for field in fields:
            _, _, _, sizes, raw_type, offset = field.parts
            _check_tensor(field.name, sizes.tolist(), int(raw_type[0]), start_offs + int(offset[0]), len(self.data))
        super()._build_tensors(start_offs, fields)


def _check_tensor(name: str, sizes: list[int], raw_type: int, start: int, file_size: int) -> None:
    try:
        block_type = gguf.GGMLQuantizationType(raw_type)
    except ValueError as problem:
        raise GgufError(f"{name}: expected a known tensor type, got number {raw_type}. Update gguf.") from problem
    if any(size < 1 for size in sizes):
        raise GgufError(f"{name}: expected sizes of at least 1, got {sizes[::-1]}.")
    per_block, nbytes = gguf.GGML_QUANT_SIZES[block_type]
    if sizes and sizes[0] % per_block:
        expected = f"rows of whole blocks of {per_block} ({block_type.name})"
        raise GgufError(f"{name}: expected {expected}, got {sizes[0]} weights.")
    end = start + math.prod(sizes) // per_block * nbytes
    if end > file_size:
        raise GgufError(
            f"{name}: expected its {end - start} bytes to end by {file_size}, the file's size, got an end at {end}. "
            "The file is truncated."
        )
