"""Grouped scales and offsets: the part of a quantised layout that int4 and int8 weights share.

A weight [N, K] is cut along K into groups. Group g of row n holds ``value = scale * q + minimum`` in real numbers; how
scale and minimum are stored is what a ``GroupFormat`` says.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError

BLOCK = 32  # Weights of a row that are stored, and activations that are quantised, together.
STEP = 256  # Weights that share a step of "codes" storage, as in GGUF's K types.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # Of a weight before and after.
STORAGES = ("fp16", "fp32", "codes")
SYMMETRIC, ZERO_POINT, MINIMUM = "symmetric", "zero_point", "minimum"

Component = tuple[tuple[int, ...], torch.dtype]


@dataclasses.dataclass(frozen=True)
class GroupFormat(abc.ABC):
    """How the scales and offsets of a weight [N, K] are stored, G = K / group_size.

    Attributes:
        group_size: weights of a row that share a scale.
        scale_storage: "fp16": ``scale`` float16 [N, G]. "fp32": float32, for weights whose scales float16 would round.
            "codes": ``scale`` uint8 [N, G] and ``scale_step`` float16 [N, K / 256]; a group's scale is the product.
        offset: "symmetric": nothing is stored. "zero_point": ``zero`` uint8 [N, G], value = scale * (q - zero).
            "minimum": value = scale * q + minimum, where the minimum is ``zero`` [N, G] in the dtype of ``scale``, or
            with "codes" minus the product of ``zero`` uint8 [N, G] and ``zero_step`` float16 [N, K / 256].

    Raises:
        WeightFormatError: one of them is not a value that the format has.
    """

    group_size: int
    scale_storage: str = "fp16"
    offset: str = SYMMETRIC

    bits: ClassVar[int]
    center: ClassVar[int]  # The integer that stands for 0 in a symmetric format.
    group_sizes: ClassVar[tuple[int, ...]]
    offsets: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        kind = type(self).__name__
        _one_of(kind, "scale_storage", self.scale_storage, STORAGES)
        _one_of(kind, "offset", self.offset, self.offsets)
        if self.scale_storage == "codes":
            if self.offset == ZERO_POINT:
                raise WeightFormatError(
                    f"{kind}: offset: expected 'symmetric' or 'minimum' with scale_storage='codes', got 'zero_point'. "
                    "Use scale_storage='fp16' or offset='minimum'."
                )
            _one_of(kind, "group_size with scale_storage='codes'", self.group_size, _divisors_of_step(self.group_sizes))

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

    @property
    def asymmetric(self) -> bool:
        """Whether an offset is stored."""
        return self.offset != SYMMETRIC

    def num_groups(self, k: int) -> int:
        """Groups of a row of ``k`` weights."""
        return k // self.group_size

    def bits_per_weight(self) -> float:
        """Stored bits per weight: the integers, and the scales and offsets spread over their group."""
        return self.bits + sum(self._bits_of_components().values())

    def nbytes(self, n: int, k: int) -> int:
        """Stored bytes of a weight [n, k]."""
        return sum(_numel(shape) * dtype.itemsize for shape, dtype in self.components(n, k).values())

    def components(self, n: int, k: int) -> dict[str, Component]:
        """Shape and dtype of each stored tensor of a weight [n, k], by name."""
        groups, steps = self.num_groups(k), k // STEP
        codes = self.scale_storage == "codes"
        stored = {"fp16": torch.float16, "fp32": torch.float32, "codes": torch.uint8}[self.scale_storage]
        found: dict[str, Component] = {"qdata": self._qdata(n, k), "scale": ((n, groups), stored)}
        if self.asymmetric:
            found["zero"] = ((n, groups), stored if self.offset == MINIMUM else torch.uint8)
        if codes:
            found["scale_step"] = ((n, steps), torch.float16)
            if self.asymmetric:
                found["zero_step"] = ((n, steps), torch.float16)
        return found

    def check_size(self, n: int, k: int, name: str = "weight") -> None:
        """Checks that a weight [n, k] can be stored.

        Raises:
            WeightFormatError: it cannot; the message has ``name`` and the sizes.
        """
        if n <= 0 or k <= 0:
            raise WeightFormatError(f"{name}: expected [N, K] with N and K at least 1, got [{n}, {k}].")
        if self.group_size not in self.group_sizes and not self._whole_row(k):
            known = ", ".join(str(size) for size in self.group_sizes)
            raise WeightFormatError(f"{name}: group_size: expected one of {known}, got {self.group_size}.")
        multiple = (
            STEP if self.scale_storage == "codes" else BLOCK if self._whole_row(k) else max(self.group_size, BLOCK)
        )
        if k % multiple:
            raise WeightFormatError(
                f"{name}: expected K to be a multiple of {multiple} (group_size {self.group_size}, scale_storage "
                f"{self.scale_storage!r}), got K = {k}. Choose another group_size or leave this weight unquantised."
            )

    def check_components(self, tensors: Mapping[str, Tensor | None], name: str = "weight") -> tuple[int, int]:
        """Checks stored tensors (fake ones too): which there are, their dtypes and shapes.

        Returns:
            N and K of the weight.

        Raises:
            WeightFormatError: naming the tensor, what was expected and what it is.
        """
        qdata = tensors.get("qdata")
        if qdata is None or qdata.dim() != 2:
            got = "None" if qdata is None else str(tuple(qdata.shape))
            raise WeightFormatError(f"{name}: qdata: expected a tensor with 2 dimensions, got {got}.")
        n, k = qdata.shape[0], qdata.shape[1] * 8 // self.bits
        self.check_size(n, k, name)
        wanted = self.components(n, k)
        for part, tensor in tensors.items():
            if part not in wanted and tensor is not None:
                raise WeightFormatError(f"{name}: {part}: expected None for {self}, got a tensor.")
        for part, (shape, dtype) in wanted.items():
            tensor = tensors.get(part)
            if tensor is None:
                raise WeightFormatError(f"{name}: {part}: expected {dtype} {list(shape)} for {self}, got None.")
            if tensor.dtype != dtype:
                raise WeightFormatError(f"{name}: {part}: expected {dtype} for {self}, got {tensor.dtype}.")
            if tuple(tensor.shape) != shape:
                raise WeightFormatError(
                    f"{name}: {part}: expected shape {list(shape)} for a weight [{n}, {k}], got {list(tensor.shape)}."
                )
            if tensor.device != qdata.device:
                raise WeightFormatError(
                    f"{name}: {part}: expected the device of qdata, {qdata.device}, got {tensor.device}."
                )
        return n, k

    def check_finite(self, tensors: Mapping[str, Tensor | None], name: str = "weight") -> None:
        """Looks at the values of scales, minima and steps, which costs a wait on a GPU.

        Raises:
            WeightFormatError: one is infinite or NaN; the message says which row.
        """
        for part, tensor in tensors.items():
            if tensor is None or not tensor.is_floating_point():
                continue
            # NaN comes through; nothing of the size of the tensor is needed unless one is wrong.
            if bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
                continue
            wrong = ~torch.isfinite(tensor)
            row, column = (int(index) for index in wrong.nonzero()[0])
            raise WeightFormatError(
                f"{name}: {part}: expected finite values, got {float(tensor[row, column])} at [{row}, {column}] "
                f"and {int(wrong.sum()) - 1} more. Check the weight that it was computed from."
            )

    def effective_scale(self, scale: Tensor, scale_step: Tensor | None = None) -> Tensor:
        """The scale of each group, float32 [N, G]; the product of code and step is exact."""
        return _product(scale, scale_step)

    def effective_minimum(self, zero: Tensor, zero_step: Tensor | None = None) -> Tensor:
        """The minimum of each group for offset "minimum", float32 [N, G]."""
        return -_product(zero, zero_step) if zero_step is not None else zero.to(torch.float32)

    def dequantize(
        self,
        qdata: Tensor,
        scale: Tensor,
        zero: Tensor | None = None,
        scale_step: Tensor | None = None,
        zero_step: Tensor | None = None,
    ) -> Tensor:
        """Values float32 [N, K] of stored tensors. The products of int4 weights, and of int8 ones that GGUF has, are
        exact unless scales are float32, so that a value is rounded at most once."""
        q = self.unpack(qdata)
        n, k = q.shape
        grouped = q.reshape(n, k // self.group_size, self.group_size).to(torch.float32)
        scales = self.effective_scale(scale, scale_step).unsqueeze(-1)
        if self.offset == MINIMUM:
            assert zero is not None
            minimum = self.effective_minimum(zero, zero_step).unsqueeze(-1)
            return (grouped * scales + minimum).reshape(n, k)
        shift = zero.unsqueeze(-1).to(torch.float32) if zero is not None else self.center
        return ((grouped - shift) * scales).reshape(n, k)

    def _whole_row(self, k: int) -> bool:
        return False

    @abc.abstractmethod
    def _qdata(self, n: int, k: int) -> Component:
        """The component that holds the integers of a weight [n, k]."""

    def _bits_of_components(self) -> dict[str, float]:
        parts = self.components(1, self.group_size * STEP)
        per_weight = self.group_size * STEP
        return {
            name: _numel(shape) * dtype.itemsize * 8 / per_weight
            for name, (shape, dtype) in parts.items()
            if name != "qdata"
        }


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


def _product(codes: Tensor, step: Tensor | None) -> Tensor:
    if step is None:
        return codes.to(torch.float32)
    n, groups = codes.shape
    steps = step.shape[1]
    return (codes.reshape(n, steps, groups // steps).to(torch.float32) * step.to(torch.float32).unsqueeze(-1)).reshape(
        n, groups
    )


def _one_of(kind: str, what: str, got: object, known: tuple[object, ...]) -> None:
    if got not in known:
        raise WeightFormatError(f"{kind}: {what}: expected one of {', '.join(map(repr, known))}, got {got!r}.")


def _divisors_of_step(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if STEP % size == 0)


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
