"""Grouped scales and offsets: what the formats of quantised weights share.

A weight [*, N, K] is cut along K into groups; leading dimensions are weights side by side, such as experts. A group
holds ``value = scale * q + minimum`` in real numbers; how scale and minimum are stored is what a ``GroupFormat`` says.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.read_memory import read_memory

BLOCK = 32  # Weights of a row that are stored, and activations that are quantised, together.
STEP = 256  # Weights that share a step of "codes" storage, as in GGUF's K types.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # Of a weight before and after.
STORAGES = ("fp16", "fp32", "codes")
SYMMETRIC, ZERO_POINT, MINIMUM = "symmetric", "zero_point", "minimum"
COMPONENTS = ("qdata", "scale", "zero", "scale_step", "zero_step")  # Stored tensors, in the operators' order.

_READ_WHOLE = 1 << 20  # Bytes below which a tensor is looked at where it lies.

Component = tuple[tuple[int, ...], torch.dtype]


@dataclasses.dataclass(frozen=True)
class GroupFormat(abc.ABC):
    """How the scales and offsets of a weight [*, N, K] are stored, G = K / group_size.

    Attributes:
        group_size: weights of a row that share a scale.
        scale_storage: "fp16": ``scale`` float16 [*, N, G]. "fp32": float32, for weights whose scales float16 would
            round. "codes": scale codes ``scale`` uint8 [*, N, G] and ``scale_step`` float16 [*, N, K / 256]; a group's
            scale is the product.
        offset: "symmetric": nothing is stored. "zero_point": ``zero`` uint8 [*, N, G], value = scale * (q - zero).
            "minimum": value = scale * q + minimum, where the minimum is ``zero`` [*, N, G] in the dtype of ``scale``,
            or with scale codes minus the product of ``zero`` uint8 [*, N, G] and ``zero_step`` float16 [*, N, K / 256].

    Raises:
        WeightFormatError: one of them is not a value that the format has.
    """

    group_size: int
    scale_storage: str = "fp16"
    offset: str = SYMMETRIC

    name: ClassVar[str]  # As in the registry.
    bits: ClassVar[int]  # Of an integer, as stored.
    stored_dtype: ClassVar[torch.dtype]  # Of ``qdata``, one byte.
    integers: ClassVar[tuple[int, int]]  # The least and the greatest that can be stored.
    quantized_integers: ClassVar[tuple[int, int]]  # Those that quantising a floating weight gives.
    center: ClassVar[int]  # The integer that stands for 0 in a symmetric format.
    group_sizes: ClassVar[tuple[int, ...]]
    whole_rows: ClassVar[bool] = False  # Whether a group may also be a row, of any number of blocks.
    offsets: ClassVar[tuple[str, ...]]
    quantized_offsets: ClassVar[tuple[str, ...]]  # Those that quantising a floating weight can give.

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if self.whole_rows:
            # Checked against K by ``check_size``.
            if self.group_size < 1:
                raise WeightFormatError(f"{owner}: group_size: expected a positive number, got {self.group_size!r}.")
        else:
            _one_of(owner, "group_size", self.group_size, self.group_sizes)
        _one_of(owner, "scale_storage", self.scale_storage, STORAGES)
        _one_of(owner, "offset", self.offset, self.offsets)
        if self.scale_storage == "codes":
            if self.offset == ZERO_POINT:
                raise WeightFormatError(
                    f"{owner}: offset: expected 'symmetric' or 'minimum' with scale_storage='codes', got 'zero_point'. "
                    "Use scale_storage='fp16' or offset='minimum'."
                )
            _one_of(
                owner, "group_size with scale_storage='codes'", self.group_size, _divisors_of_step(self.group_sizes)
            )

    @classmethod
    def of(
        cls,
        group_size: int,
        scale: Tensor,
        zero: Tensor | None,
        scale_step: Tensor | None,
        zero_step: Tensor | None,
    ) -> Self:
        """The format of stored tensors, told from which there are and their dtypes."""
        storage = "codes" if scale_step is not None else "fp32" if scale.dtype == torch.float32 else "fp16"
        if zero is None:
            return cls(group_size, storage, SYMMETRIC)
        minimum = zero_step is not None or zero.is_floating_point()
        return cls(group_size, storage, MINIMUM if minimum else ZERO_POINT)

    @staticmethod
    @abc.abstractmethod
    def pack(q: Tensor) -> Tensor:
        """Integers [..., K] as they are stored."""

    @staticmethod
    @abc.abstractmethod
    def unpack(qdata: Tensor) -> Tensor:
        """Stored integers as integers [..., K]; the inverse of ``pack``, traceable."""

    @classmethod
    def is_affine(cls) -> bool:
        """Whether values are ``scale * q + minimum``. A format of other values has a ``dequantize`` of its own."""
        return cls.dequantize is GroupFormat.dequantize

    @property
    def asymmetric(self) -> bool:
        """Whether an offset is stored."""
        return self.offset != SYMMETRIC

    def num_groups(self, k: int) -> int:
        """Groups of a row of ``k`` weights."""
        return k // self.group_size

    def bits_per_weight(self) -> float:
        """Stored bits per weight: the integers, and the scales and offsets spread over their group."""
        many = self.group_size * STEP
        others = (value for name, value in self.components(1, many).items() if name != "qdata")
        return self.bits + sum(math.prod(shape) * dtype.itemsize * 8 / many for shape, dtype in others)

    def nbytes(self, *shape: int) -> int:
        """Stored bytes of a weight of that shape, [*, N, K]."""
        return sum(math.prod(size) * dtype.itemsize for size, dtype in self.components(*shape).values())

    def components(self, *shape: int) -> dict[str, Component]:
        """Shape and dtype of each stored tensor of a weight of that shape, [*, N, K], by name."""
        *rows, k = shape
        groups, steps = (*rows, self.num_groups(k)), (*rows, k // STEP)
        codes = self.scale_storage == "codes"
        stored = {"fp16": torch.float16, "fp32": torch.float32, "codes": torch.uint8}[self.scale_storage]
        found: dict[str, Component] = {
            "qdata": ((*rows, k * self.bits // 8), self.stored_dtype),
            "scale": (groups, stored),
        }
        if self.asymmetric:
            found["zero"] = (groups, stored if self.offset == MINIMUM else torch.uint8)
        if codes:
            found["scale_step"] = (steps, torch.float16)
            if self.asymmetric:
                found["zero_step"] = (steps, torch.float16)
        return found

    def check_size(self, shape: Sequence[int], name: str = "weight") -> None:
        """Checks that a weight [*, N, K] can be stored.

        Raises:
            WeightFormatError: it cannot; the message has ``name`` and the sizes.
        """
        if len(shape) < 2 or any(size <= 0 for size in shape):
            raise WeightFormatError(f"{name}: expected [*, N, K] with every size at least 1, got {list(shape)}.")
        k = shape[-1]
        whole = self.whole_rows and self.group_size == k
        if self.group_size not in self.group_sizes and not whole:
            known = ", ".join(str(size) for size in self.group_sizes)
            raise WeightFormatError(f"{name}: group_size: expected one of {known}, got {self.group_size}.")
        multiple = STEP if self.scale_storage == "codes" else BLOCK if whole else max(self.group_size, BLOCK)
        if k % multiple:
            raise WeightFormatError(
                f"{name}: expected K to be a multiple of {multiple} (group_size {self.group_size}, scale_storage "
                f"{self.scale_storage!r}), got K = {k}. Choose another group_size or leave this weight unquantised."
            )

    def check_components(self, tensors: Mapping[str, Tensor | None], name: str = "weight") -> tuple[int, ...]:
        """Checks stored tensors (fake ones too): which there are, their dtypes and shapes.

        Returns:
            The weight's shape, [*, N, K].

        Raises:
            WeightFormatError: naming the tensor, what was expected and what it is.
        """
        qdata = tensors.get("qdata")
        if qdata is None or qdata.dim() < 2:
            got = "None" if qdata is None else str(tuple(qdata.shape))
            raise WeightFormatError(f"{name}: qdata: expected a tensor with at least 2 dimensions, got {got}.")
        shape = (*qdata.shape[:-1], qdata.shape[-1] * 8 // self.bits)
        self.check_size(shape, name)
        wanted = self.components(*shape)
        for component, tensor in tensors.items():
            if component not in wanted and tensor is not None:
                raise WeightFormatError(f"{name}: {component}: expected None for {self}, got a tensor.")
        for component, (size, dtype) in wanted.items():
            tensor = tensors.get(component)
            where = f"{name}: {component}"
            if tensor is None:
                raise WeightFormatError(f"{where}: expected {dtype} {list(size)} for {self}, got None.")
            if tensor.dtype != dtype:
                raise WeightFormatError(f"{where}: expected {dtype} for {self}, got {tensor.dtype}.")
            if tuple(tensor.shape) != size:
                raise WeightFormatError(
                    f"{where}: expected shape {list(size)} for a weight {list(shape)}, got {list(tensor.shape)}."
                )
            if tensor.device != qdata.device:
                raise WeightFormatError(f"{where}: expected the device of qdata, {qdata.device}, got {tensor.device}.")
        return shape

    def check_finite(self, tensors: Mapping[str, Tensor | None], name: str = "weight") -> None:
        """Looks at the values of scales, minima and steps, which costs a wait on a GPU.

        Raises:
            WeightFormatError: one is infinite or NaN; the message says which row.
        """
        for component, tensor in tensors.items():
            if tensor is None or not tensor.is_floating_point():
                continue
            # NaN comes through; nothing of the size of the tensor is needed unless one is wrong.
            if all(bool(torch.isfinite(torch.stack(torch.aminmax(part))).all()) for part in _parts(tensor)):
                continue
            wrong = ~torch.isfinite(tensor)
            at = wrong.nonzero()[0].tolist()
            raise WeightFormatError(
                f"{name}: {component}: expected finite values, got {float(tensor[tuple(at)])} at {at} "
                f"and {int(wrong.sum()) - 1} more. Check the weight that it was computed from."
            )

    def effective_scale(self, scale: Tensor, scale_step: Tensor | None = None) -> Tensor:
        """The scale of each group, float32 [*, N, G]; the product of code and step is exact."""
        return _product(scale, scale_step)

    def effective_minimum(self, zero: Tensor, zero_step: Tensor | None = None) -> Tensor:
        """The minimum of each group for offset "minimum", float32 [*, N, G]."""
        return -_product(zero, zero_step) if zero_step is not None else zero.to(torch.float32)

    def dequantize(
        self,
        qdata: Tensor,
        scale: Tensor,
        zero: Tensor | None = None,
        scale_step: Tensor | None = None,
        zero_step: Tensor | None = None,
    ) -> Tensor:
        """Values float32 [*, N, K] of stored tensors. The products of int4 weights, and of int8 ones that GGUF has,
        are exact unless scales are float32, so that a value is rounded at most once."""
        q = self.unpack(qdata)
        shape = q.shape
        grouped = q.reshape(*shape[:-1], shape[-1] // self.group_size, self.group_size).to(torch.float32)
        scales = self.effective_scale(scale, scale_step).unsqueeze(-1)
        if self.offset == MINIMUM:
            assert zero is not None
            minimum = self.effective_minimum(zero, zero_step).unsqueeze(-1)
            return (grouped * scales + minimum).reshape(shape)
        shift = zero.unsqueeze(-1).to(torch.float32) if zero is not None else self.center
        return ((grouped - shift) * scales).reshape(shape)


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """All values, in parts that leave a mapped file where it is: scales are a ninth of an int4 model."""
    in_place = tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.data_ptr() % tensor.itemsize
    if in_place or tensor.nbytes < _READ_WHOLE:
        yield tensor
        return
    for chunk in read_memory(tensor.data_ptr(), tensor.nbytes):
        yield torch.frombuffer(chunk, dtype=tensor.dtype)


def check_integers(q: Tensor, least: int, most: int) -> None:
    """Looks at integers that are to be stored.

    Raises:
        WeightFormatError: they are not integers, or one is out of range.
    """
    if q.is_floating_point() or q.is_complex() or q.dtype == torch.bool:
        raise WeightFormatError(f"pack: expected integers, got {q.dtype}.")
    if q.numel():
        low, high = (int(value) for value in torch.aminmax(q))
        if low < least or high > most:
            raise WeightFormatError(f"pack: expected integers from {least} to {most}, got {low} to {high}.")


def _product(scale_codes: Tensor, step: Tensor | None) -> Tensor:
    if step is None:
        return scale_codes.to(torch.float32)
    *rows, groups = scale_codes.shape
    steps = step.shape[-1]
    by_step = scale_codes.reshape(*rows, steps, groups // steps).to(torch.float32)
    return (by_step * step.to(torch.float32).unsqueeze(-1)).reshape(*rows, groups)


def _one_of(owner: str, what: str, got: object, known: tuple[object, ...]) -> None:
    if got not in known:
        raise WeightFormatError(f"{owner}: {what}: expected one of {', '.join(map(repr, known))}, got {got!r}.")


def _divisors_of_step(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if STEP % size == 0)
