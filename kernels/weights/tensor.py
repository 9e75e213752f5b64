"""``CoalescedTensor``: what the int4 and int8 tensor subclasses share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torchao.utils import TorchAOBaseTensor

from etcuda.errors import KernelArgumentError, WeightFormatError
from etcuda.kernels.formats.base import DTYPES, GroupFormat

aten = torch.ops.aten

ACTIVATIONS = ("int8", "exact")
PARTS = ("qdata", "scale", "zero", "scale_step", "zero_step")


class CoalescedTensor(TorchAOBaseTensor):  # type: ignore[misc]
    """A quantised weight [N, K], stored as its format says; see ``kernels/linear/README.md``.

    Tensor data:
        qdata: the integers, row by row.
        scale, zero, scale_step, zero_step: as in ``GroupFormat``; what the format does not have is ``None``.

    Attributes:
        group_size: weights of a row that share a scale.
        activation_dtype: "int8" (activations are rounded to int8 per block of 32) or "exact".
        dtype: bfloat16, float16 or float32: of looked-up rows and dequantised values, whatever the storage.

    Raises:
        WeightFormatError: shapes and dtypes do not fit together. Values are not looked at; see ``check_finite``.
    """

    tensor_data_names: ClassVar[list[str]] = ["qdata", "scale"]
    tensor_attribute_names: ClassVar[list[str]] = ["group_size", "activation_dtype", "dtype"]
    optional_tensor_data_names: ClassVar[list[str]] = ["zero", "scale_step", "zero_step"]

    format_type: ClassVar[type[GroupFormat]]
    family: ClassVar[str]  # Its operators are ``etcuda::<family>_linear`` and ``etcuda::<family>_embedding``.

    qdata: Tensor
    scale: Tensor
    zero: Tensor | None
    scale_step: Tensor | None
    zero_step: Tensor | None
    group_size: int
    activation_dtype: str

    def __new__(
        cls,
        qdata: Tensor,
        scale: Tensor,
        group_size: int,
        activation_dtype: str,
        dtype: torch.dtype,
        zero: Tensor | None = None,
        scale_step: Tensor | None = None,
        zero_step: Tensor | None = None,
    ) -> CoalescedTensor:
        """Checks shapes and dtypes; ``__init__`` keeps the tensors."""
        if activation_dtype not in ACTIVATIONS:
            raise WeightFormatError(
                f"{cls.__name__}: activation_dtype: expected 'int8' or 'exact', got {activation_dtype!r}."
            )
        _check_dtype(cls.__name__, dtype)
        form = cls.format_type.of(group_size, scale, zero, scale_step, zero_step)
        parts = dict(zip(PARTS, (qdata, scale, zero, scale_step, zero_step), strict=True))
        shape = form.check_components(parts, cls.__name__)
        made: CoalescedTensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=qdata.device, requires_grad=False
        )
        return made

    def __init__(
        self,
        qdata: Tensor,
        scale: Tensor,
        group_size: int,
        activation_dtype: str,
        dtype: torch.dtype,
        zero: Tensor | None = None,
        scale_step: Tensor | None = None,
        zero_step: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.qdata, self.scale, self.zero = qdata, scale, zero
        self.scale_step, self.zero_step = scale_step, zero_step
        self.group_size, self.activation_dtype = group_size, activation_dtype

    @classmethod
    def from_parts(
        cls,
        parts: Mapping[str, Tensor | None],
        group_size: int,
        activation_dtype: str = "int8",
        dtype: torch.dtype = torch.bfloat16,
        name: str = "weight",
    ) -> Any:
        """A tensor of stored tensors by name, their values checked too.

        Raises:
            WeightFormatError: they do not fit together, or a scale is infinite or NaN; the message has ``name``.
        """
        qdata, scale, zero, scale_step, zero_step = (parts.get(part) for part in PARTS)
        if qdata is None or scale is None:
            raise WeightFormatError(f"{name}: expected qdata and scale, got {sorted(parts)}.")
        form = cls.format_type.of(group_size, scale, zero, scale_step, zero_step)
        form.check_components(parts, name)
        form.check_finite(parts, name)
        return cls(qdata, scale, group_size, activation_dtype, dtype, zero, scale_step, zero_step)

    @property
    def format(self) -> GroupFormat:
        """Format of the stored tensors."""
        return self.format_type.of(self.group_size, self.scale, self.zero, self.scale_step, self.zero_step)

    @property
    def parts(self) -> dict[str, Tensor]:
        """The stored tensors by name, without those that are ``None``."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def stored_bytes(self) -> int:
        """Bytes that the stored tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.parts.values())

    def with_activation(self, activation_dtype: str) -> CoalescedTensor:
        """The same stored tensors with another handling of activations, "int8" or "exact"."""
        made: CoalescedTensor = self._made_of(self._stored(), activation_dtype, self.dtype)
        return made

    def check_finite(self, name: str = "weight") -> None:
        """Looks at the scales.

        Raises:
            WeightFormatError: one is infinite or NaN; the message has ``name``.
        """
        self.format.check_finite(self.parts, name)

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """Values [N, K] in ``output_dtype``, by default the tensor's dtype, computed in float32 and rounded once."""
        values = self.format.dequantize(*self._stored())
        return values.to(self.dtype if output_dtype is None else output_dtype)

    def extra_repr(self) -> str:
        """One line without values."""
        return (
            f"shape={list(self.shape)}, dtype={self.dtype}, device={self.device}, {self.format}, "
            f"activation_dtype={self.activation_dtype!r}"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    # torchao shows this in a quantised module's line.
    _quantization_type = extra_repr

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if func in cls._ATEN_OP_TABLE[cls]:
            return super().__torch_dispatch__(func, types, args, kwargs)
        # In inference mode operators arrive whole that otherwise arrive in parts.
        result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise KernelArgumentError(
                f"{func}: expected an operator that a {cls.__name__} has: linear, embedding, slicing of rows, copies "
                "and moves. Use weight.dequantize()."
            )
        return result

    def _stored(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return self.qdata, self.scale, self.zero, self.scale_step, self.zero_step

    def _dense(self) -> list[Tensor | None]:
        # Every second row of a weight is a view that kernels do not read.
        return [part if part is None or part.is_contiguous() else part.contiguous() for part in self._stored()]

    def _map(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Any:
        """A tensor of the stored tensors after ``function``."""
        stored = [None if part is None else function(part) for part in self._stored()]
        return self._made_of(stored, self.activation_dtype, self.dtype if dtype is None else dtype)

    def _made_of(self, stored: Sequence[Tensor | None], activation_dtype: str, dtype: torch.dtype) -> Any:
        qdata, scale, *optional = stored
        return type(self)(qdata, scale, self.group_size, activation_dtype, dtype, *optional)  # type: ignore[arg-type]


def _op(weight: CoalescedTensor, name: str) -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = getattr(torch.ops.etcuda, f"{weight.family}_{name}")
    return found


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, CoalescedTensor) or isinstance(input, CoalescedTensor):
        got = f"{type(input).__name__} and {type(weight).__name__}"
        raise KernelArgumentError(f"linear: expected a plain input and a quantised weight, got {got}.")
    return _op(weight, "linear")(input, *weight._dense(), bias, weight.group_size, weight.activation_dtype)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    # padding_idx, scale_grad_by_freq and sparse speak of gradients, which a quantised weight has not.
    if not isinstance(weight, CoalescedTensor):
        raise KernelArgumentError(f"embedding: expected a quantised weight, got {type(weight).__name__}.")
    if max_norm is not None:
        raise KernelArgumentError(
            f"embedding: max_norm: expected None for a quantised weight, got {max_norm}. It rewrites the weight."
        )
    return _op(weight, "embedding")(input, *weight._dense(), weight.group_size, weight.dtype)


def _slice(self: CoalescedTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    # Rows; the stored tensors are views.
    if dim % 2 == 0:
        return self._map(lambda part: aten.slice.Tensor(part, 0, start, end, step))
    if start in (None, 0) and (end is None or end >= self.shape[1]) and step == 1:
        return self._map(aten.alias.default)
    raise WeightFormatError(
        f"{type(self).__name__}: slicing: expected dimension 0, the rows, got dimension {dim}. "
        "Dequantize the weight first."
    )


def _to_copy(
    self: CoalescedTensor,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    non_blocking: bool = False,
    **layout: Any,
) -> Any:
    # Stored tensors keep their dtypes: only what is computed from them changes.
    dtype = self.dtype if dtype is None else dtype
    _check_dtype(f"{type(self).__name__}.to", dtype)
    where = self.device if device is None else device
    return self._map(lambda part: part.to(where, non_blocking=non_blocking, copy=True), dtype)


def _check_dtype(where: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise WeightFormatError(f"{where}: dtype: expected bfloat16, float16 or float32, got {dtype}.")


def _function(implementation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda func, types, args, kwargs: implementation(*args, **kwargs)


def _aliasing(implementation: Callable[..., Any]) -> Callable[..., Any]:
    def run(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = implementation(*args, **kwargs)
        return return_and_correct_aliasing(func, args, kwargs, result)  # type: ignore[no-untyped-call]

    return run


# Subclasses take the tables over when they are made, so this stands before the first of them.
CoalescedTensor.implements_torch_function([torch.nn.functional.linear])(_function(_linear))
CoalescedTensor.implements_torch_function([torch.nn.functional.embedding])(_function(_embedding))
CoalescedTensor.implements([aten.linear.default])(_function(_linear))
CoalescedTensor.implements([aten.embedding.default])(_function(lambda weight, indices, *_: _embedding(indices, weight)))
CoalescedTensor.implements([aten.slice.Tensor])(_aliasing(_slice))
CoalescedTensor.implements([aten._to_copy.default])(_aliasing(_to_copy))
# torchao's own takes no other dtype; the operator's parts do.
CoalescedTensor.implements([aten.to.dtype_layout])(lambda func, types, args, kwargs: func.decompose(*args, **kwargs))
