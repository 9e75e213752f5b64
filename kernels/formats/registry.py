"""One record per weight format: what operators, passes, tuner and tensor subclasses know of it.

This package knows nothing of the operators: a record has their names and finds them once they are defined.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, Literal

import torch
from torch._ops import OpOverload

from etcuda.kernels.formats.base import SYMMETRIC, GroupFormat

Kernel = Literal["matvec", "matmul", "hopper_gemm"]
# Operators of a format are called <name>_<one of these>.
OPERATORS = ("linear", "embedding", "matvec", "matvec_quantized", "matmul", "matmul_reordered")


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """A weight format.

    Attributes:
        owner: the module that registers it.
        format_type: how weights are stored: name, bits, groups, offsets, packing, and what values they stand for.
        tensor: the tensor subclass, ``"module:class"``.
        kernels: those that serve it. "matvec": integer dot products for few tokens; "matmul": tensor cores, for any
            number; "hopper_gemm": CUDA C++ for Hopper, a configuration of matmul. Without any, products are computed
            by their formula.
        tuned_offset: offset of the weights that the tuner measures.
        tuned_shapes: whether it measures all shapes, or few; its table is ``kernels/tuned/<name>/<arch>.json``.
    """

    owner: str
    format_type: type[GroupFormat]
    tensor: str
    kernels: frozenset[Kernel] = frozenset()
    tuned_offset: str = SYMMETRIC
    tuned_shapes: Literal["all", "few"] = "few"

    @property
    def name(self) -> str:
        """The record's key, "int4": of its operators, its table, and in files of weights."""
        return self.format_type.name

    @property
    def bits(self) -> int:
        """Of an integer."""
        return self.format_type.bits

    @property
    def tensor_type(self) -> Any:
        """The tensor subclass. Its module loads here, for it brings torchao with it."""
        module, name = self.tensor.split(":")
        return getattr(importlib.import_module(module), name)

    @property
    def linear_op(self) -> OpOverload:
        """``etcuda::<name>_linear``, what an exported model holds for each linear layer."""
        return self._op("linear")

    @property
    def embedding_op(self) -> OpOverload:
        """``etcuda::<name>_embedding``, rows of the weight."""
        return self._op("embedding")

    @property
    def matvec_op(self) -> OpOverload:
        """``etcuda::<name>_matvec``, of formats that the matvec kernels serve."""
        return self._op("matvec")

    @property
    def matvec_quantized_op(self) -> OpOverload:
        """``etcuda::<name>_matvec_quantized``, of the same formats."""
        return self._op("matvec_quantized")

    @property
    def matmul_op(self) -> OpOverload:
        """``etcuda::<name>_matmul``, of formats that the matmul kernels serve."""
        return self._op("matmul")

    @property
    def matmul_reordered_op(self) -> OpOverload:
        """``etcuda::<name>_matmul_reordered``, of the same formats."""
        return self._op("matmul_reordered")

    def _op(self, what: str) -> OpOverload:
        found: OpOverload = getattr(torch.ops.etcuda, f"{self.name}_{what}").default
        return found


_RECORDS: dict[str, WeightFormat] = {}
_BY_OPERATOR: dict[str, WeightFormat] = {}


def register(record: WeightFormat) -> WeightFormat:
    """Adds a format.

    Raises:
        ValueError: another one has the same name.
    """
    if record.name in _RECORDS:
        raise ValueError(
            f"weight format {record.name!r} is registered twice: expected one owner, got "
            f"{_RECORDS[record.name].owner} and {record.owner}. Rename or remove one of them."
        )
    _RECORDS[record.name] = record
    _BY_OPERATOR.update({f"etcuda::{record.name}_{what}": record for what in OPERATORS})
    return record


def formats() -> tuple[WeightFormat, ...]:
    """Every format, those of fewer bits first, then by name."""
    return tuple(sorted(_RECORDS.values(), key=lambda record: (record.bits, record.name)))


def find(name: str) -> WeightFormat:
    """The format of a name.

    Raises:
        KeyError: there is none.
    """
    if name not in _RECORDS:
        known = ", ".join(record.name for record in formats()) or "none"
        raise KeyError(f"weight format {name!r} is not registered; expected one of: {known}.")
    return _RECORDS[name]


def by_op(op: Any) -> WeightFormat | None:
    """The format whose operator ``op``, an ``OpOverload``, is; ``None`` if it is something else."""
    return _BY_OPERATOR.get(op.name()) if isinstance(op, OpOverload) else None  # type: ignore[no-untyped-call]
