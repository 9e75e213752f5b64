"""``CoalescedTensor``: what the tensor subclasses of all weight formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torchao.utils import TorchAOBaseTensor

from etcuda.errors import KernelArgumentError, WeightFormatError
from etcuda.kernels.formats.base import COMPONENTS, DTYPES, GroupFormat
from etcuda.kernels.formats.registry import find
from etcuda.kernels.weights.renamed import renamed_keyword

aten = torch.ops.aten

ACTIVATION_DTYPES = ("int8", "exact")
_RENAMED = {"activation": "activation_dtype"}


class CoalescedTensor(TorchAOBaseTensor):  # type: ignore[misc]
    """A quantised weight [*, N, K], stored as its format says; see ``kernels/formats/README.md``.

    Linear layers and look-ups take a weight [N, K]; one of several, such as experts, is ``weight[0]``.

    Tensor data:
        qdata: the integers, row by row.
        scale, zero, scale_step, zero_step: as in ``GroupFormat``; what the format does not have is ``None``.

    Attributes:
        group_size: weights of a row that share a scale.
        activation_dtype: "int8" (activations may be quantized to int8 per block of 32) or "exact".
        dtype: bfloat16, float16 or float32: of looked-up rows and dequantised values, whatever the storage.

    Raises:
        WeightFormatError: shapes and dtypes do not fit together. Values are not looked at; see ``check_finite``.
    """

    tensor_data_names: ClassVar[list[str]] = ["qdata", "scale"]
    tensor_attribute_names: ClassVar[list[str]] = ["group_size", "activation_dtype", "dtype"]
    optional_tensor_data_names: ClassVar[list[str]] = ["zero", "scale_step", "zero_step"]

    format_type: ClassVar[type[GroupFormat]]

    qdata: Tensor
    scale: Tensor
    zero: Tensor | None
    scale_step: Tensor | None
    zero_step: Tensor | None
    group_size: int
    activation_dtype: str

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        set_state = cls.__setstate__  # torchao's, which it gives every subclass.

        def set_renamed(self: CoalescedTensor, state: dict[str, Any]) -> None:
            # "activation" is what checkpoints called the attribute before.
            set_state(self, {_RENAMED.get(name, name): value for name, value in state.items()})

        cls.__setstate__ = set_renamed

    @renamed_keyword("activation", "activation_dtype")
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
        if activation_dtype not in ACTIVATION_DTYPES:
            raise WeightFormatError(
                f"{cls.__name__}: activation_dtype: expected 'int8' or 'exact', got {activation_dtype!r}."
            )
        _check_dtype(cls.__name__, dtype)
        weight_format = cls.format_type.of(group_size, scale, zero, scale_step, zero_step)
        components = dict(zip(COMPONENTS, (qdata, scale, zero, scale_step, zero_step), strict=True))
        shape = weight_format.check_components(components, cls.__name__)
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
    @renamed_keyword("activation", "activation_dtype")
    def from_components(
        cls,
        components: Mapping[str, Tensor | None],
        group_size: int,
        activation_dtype: str = "int8",
        dtype: torch.dtype = torch.bfloat16,
        name: str = "weight",
    ) -> Any:
        """A tensor of stored tensors by name, their values checked too.

        Raises:
            WeightFormatError: they do not fit together, or a scale is infinite or NaN; the message has ``name``.
        """
        qdata, scale, zero, scale_step, zero_step = (components.get(each) for each in COMPONENTS)
        if qdata is None or scale is None:
            raise WeightFormatError(f"{name}: expected qdata and scale, got {sorted(components)}.")
        weight_format = cls.format_type.of(group_size, scale, zero, scale_step, zero_step)
        weight_format.check_components(components, name)
        weight_format.check_finite(components, name)
        return cls(qdata, scale, group_size, activation_dtype, dtype, zero, scale_step, zero_step)

    @property
    def format(self) -> GroupFormat:
        """Format of the stored tensors."""
        return self.format_type.of(self.group_size, self.scale, self.zero, self.scale_step, self.zero_step)

    @property
    def components(self) -> dict[str, Tensor]:
        """The stored tensors by name, without those that are ``None``."""
        found = {name: getattr(self, name) for name in COMPONENTS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def stored_bytes(self) -> int:
        """Bytes that the stored tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.components.values())

    def with_activation_dtype(self, activation_dtype: str) -> CoalescedTensor:
        """The same stored tensors with another handling of activations, "int8" or "exact"."""
        made: CoalescedTensor = self._made_of(self._stored(), activation_dtype, self.dtype)
        return made

    def check_finite(self, name: str = "weight") -> None:
        """Looks at the scales.

        Raises:
            WeightFormatError: one is infinite or NaN; the message has ``name``.
        """
        self.format.check_finite(self.components, name)

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """Values [*, N, K] in ``output_dtype``, by default the tensor's dtype, computed in float32 and rounded once."""
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
                f"{func}: expected an operator that a {cls.__name__} has: linear, embedding, slicing of rows, "
                "one weight of several, copies and moves. Use weight.dequantize()."
            )
        return result

    def _stored(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return self.qdata, self.scale, self.zero, self.scale_step, self.zero_step

    def _dense(self) -> list[Tensor | None]:
        # Every second row of a weight is a view that kernels do not read.
        return [each if each is None or each.is_contiguous() else each.contiguous() for each in self._stored()]

    def _map(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Any:
        """A tensor of the stored tensors after ``function``."""
        stored = [None if each is None else function(each) for each in self._stored()]
        return self._made_of(stored, self.activation_dtype, self.dtype if dtype is None else dtype)

    def _made_of(self, stored: Sequence[Tensor | None], activation_dtype: str, dtype: torch.dtype) -> Any:
        qdata, scale, *optional = stored
        return type(self)(qdata, scale, self.group_size, activation_dtype, dtype, *optional)  # type: ignore[arg-type]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not isinstance(weight, CoalescedTensor) or isinstance(input, CoalescedTensor):
        got = f"{type(input).__name__} and {type(weight).__name__}"
        raise KernelArgumentError(f"linear: expected a plain input and a quantised weight, got {got}.")
    op = find(weight.format_type.name).linear_op
    result: Tensor = op(input, *weight._dense(), bias, weight.group_size, weight.activation_dtype)
    return result


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
    op = find(weight.format_type.name).embedding_op
    result: Tensor = op(input, *weight._dense(), weight.group_size, weight.dtype)
    return result


def _slice(self: CoalescedTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    # Rows, or some of several weights; the stored tensors are views.
    dim = dim % self.dim()
    if dim < self.dim() - 1:
        return self._map(lambda stored: aten.slice.Tensor(stored, dim, start, end, step))
    if start in (None, 0) and (end is None or end >= self.shape[-1]) and step == 1:
        return self._map(aten.alias.default)
    raise WeightFormatError(
        f"{type(self).__name__}: slicing: expected a dimension before the last, such as 0, got dimension {dim} of "
        f"{list(self.shape)}. Dequantize the weight first."
    )


def _select(self: CoalescedTensor, dim: int, index: int) -> Any:
    # One of several weights; the stored tensors are views.
    dim = dim % self.dim()
    if dim < self.dim() - 2:
        return self._map(lambda stored: aten.select.int(stored, dim, index))
    raise WeightFormatError(
        f"{type(self).__name__}: indexing: expected a dimension before the rows, such as that of experts, got "
        f"dimension {dim} of {list(self.shape)}. Take rows by a slice, or dequantize the weight first."
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
    return self._map(lambda stored: stored.to(where, non_blocking=non_blocking, copy=True), dtype)


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
CoalescedTensor.implements([aten.select.int])(_aliasing(_select))
CoalescedTensor.implements([aten._to_copy.default])(_aliasing(_to_copy))
# torchao's own takes no other dtype; the operator's parts do.
CoalescedTensor.implements([aten.to.dtype_layout])(lambda func, types, args, kwargs: func.decompose(*args, **kwargs))
