"""Configurations for torchao's ``quantize_``, and ``quantize_weights``, which checks a whole model first."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from etcuda.errors import OptionError, WeightFormatError
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.int4 import Int4Format
from etcuda.kernels.formats.int8 import Int8Format
from etcuda.kernels.formats.registry import find
from etcuda.kernels.weights.quantize import SEARCHES, check_weight, quantize_weight
from etcuda.kernels.weights.renamed import renamed_keyword
from etcuda.kernels.weights.tensor import ACTIVATION_DTYPES, CoalescedTensor

Filter = Callable[[nn.Module, str], bool]


def _quantize_module(module: nn.Module, config: Any, *, parameter_name: str = "weight") -> nn.Module:
    # torchao does not say which module of the model this is.
    name = f"{parameter_name} of {module}"
    weight = _weight_of(module, parameter_name, name)
    quantized = quantize_tensor(weight, config, name)
    setattr(module, parameter_name, nn.Parameter(quantized, requires_grad=False))
    return module


class CoalescedConfig(AOBaseConfig):  # type: ignore[misc]
    """What the configurations share. A subclass, a dataclass, is that of one weight format; torchao's ``quantize_``
    takes it once it is defined.

    Attributes:
        format_name: of the weight format.
        activation_dtype: "int8" or "exact".
        scale_search: "minmax" or "least_squares".
    """

    format_name: ClassVar[str]
    activation_dtype: str
    scale_search: str

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        register_quantize_module_handler(cls)(_quantize_module)

    @abc.abstractmethod
    def format(self, k: int) -> GroupFormat:
        """Format of a weight [*, N, k].

        Raises:
            WeightFormatError: there is none.
        """

    def check_options(self) -> None:
        """Checks the options that the weight format does not.

        Raises:
            OptionError: a value is not one of those.
        """
        for option, known in (("activation_dtype", ACTIVATION_DTYPES), ("scale_search", SEARCHES)):
            value = getattr(self, option)
            if value not in known:
                expected = " or ".join(map(repr, known))
                raise OptionError(f"{type(self).__name__}: {option}: expected {expected}, got {value!r}.")


@renamed_keyword("activation", "activation_dtype")
@dataclasses.dataclass
class Int4CoalescedConfig(CoalescedConfig):
    """int4 weights: ``torchao.quantization.quantize_(model, Int4CoalescedConfig(group_size=32))``.

    Attributes:
        group_size: weights of a row that share a scale: 32, 64, 128 or 256.
        scale_storage: "fp16", "fp32" or "codes"; see ``GroupFormat``.
        offset: "symmetric", "zero_point" or "minimum".
        activation_dtype: "int8": activations may be quantized to int8 per block of 32 (W4A8). "exact": they are not
            (W4A16).
        scale_search: "minmax", or "least_squares", slower and of HQQ's quality or better.

    Raises:
        OptionError, WeightFormatError: a value is not one of these.
    """

    format_name: ClassVar[str] = "int4"

    group_size: int = 32
    scale_storage: str = "fp16"
    offset: str = "zero_point"
    activation_dtype: str = "int8"
    scale_search: str = "minmax"

    def __post_init__(self) -> None:
        self.check_options()
        self.format(self.group_size)

    def format(self, k: int) -> Int4Format:
        """Format of a weight [*, N, k]."""
        return Int4Format(self.group_size, self.scale_storage, self.offset)


@renamed_keyword("activation", "activation_dtype")
@dataclasses.dataclass
class Int8CoalescedConfig(CoalescedConfig):
    """int8 weights, symmetric: ``torchao.quantization.quantize_(model, Int8CoalescedConfig())``.

    Attributes:
        group_size: weights of a row that share a scale: 16, 32, 64, 128 or 256, or ``None`` for the whole row.
        scale_storage: "fp16", "fp32" or "codes"; see ``GroupFormat``.
        activation_dtype: "int8" (W8A8) or "exact" (W8A16).
        scale_search: "minmax" or "least_squares".

    Raises:
        OptionError, WeightFormatError: a value is not one of these.
    """

    format_name: ClassVar[str] = "int8"

    group_size: int | None = 32
    scale_storage: str = "fp16"
    activation_dtype: str = "int8"
    scale_search: str = "minmax"

    def __post_init__(self) -> None:
        self.check_options()
        if self.group_size is not None:
            self.format(self.group_size)

    def format(self, k: int) -> Int8Format:
        """Format of a weight [*, N, k]."""
        return Int8Format(max(k, 1) if self.group_size is None else self.group_size, self.scale_storage)


def quantize_tensor(weight: torch.Tensor, config: CoalescedConfig, name: str = "weight") -> CoalescedTensor:
    """A quantised tensor of a floating weight [*, N, K].

    Raises:
        WeightFormatError: it cannot be quantised so; the message has ``name``.
    """
    if weight.dim() < 2:
        raise WeightFormatError(f"{name}: expected a weight [*, N, K], got shape {list(weight.shape)}.")
    weight_format = config.format(weight.shape[-1])
    components = quantize_weight(weight.detach(), weight_format, config.scale_search, name)
    made: CoalescedTensor = find(config.format_name).tensor_type.from_components(
        components, weight_format.group_size, config.activation_dtype, weight.dtype, name
    )
    return made


def quantize_weights(model: nn.Module, config: CoalescedConfig, filter_fn: Filter | None = None) -> list[str]:
    """Quantises weights of a model in place, as torchao's ``quantize_`` with the same configuration, but checks every
    weight before it changes the first, names it in messages, and leaves shared what several modules share.

    Args:
        model: the model.
        config: what to make of the weights.
        filter_fn: takes a module and its name; whether its ``weight`` is to be quantised. By default linear layers.

    Returns:
        Names of the quantised weights.

    Raises:
        WeightFormatError: naming each weight that cannot be quantised, with the reason; the model is as before.
    """
    chosen = {name: module for name, module in model.named_modules() if _is_chosen(module, name, filter_fn)}
    problems = []
    for name, module in chosen.items():
        try:
            weight = _weight_of(module, "weight", _joined(name))
            check_weight(weight, config.format(weight.shape[-1]), _joined(name))
        except WeightFormatError as problem:
            problems.append(str(problem))
    if problems:
        raise WeightFormatError("\n".join(problems))
    owners: dict[int, list[nn.Module]] = {}
    for module in chosen.values():
        owners.setdefault(id(module.weight), []).append(module)
    for name, module in chosen.items():
        same = owners.pop(id(module.weight), None)
        if same is None:
            continue
        quantized = quantize_tensor(_weight_of(module, "weight", _joined(name)), config, _joined(name))
        shared = nn.Parameter(quantized, requires_grad=False)
        for owner in same:
            owner.weight = shared
    return [_joined(name) for name in chosen]


def _is_chosen(module: nn.Module, name: str, filter_fn: Filter | None) -> bool:
    return isinstance(module, nn.Linear) if filter_fn is None else filter_fn(module, name)


def _weight_of(module: nn.Module, parameter_name: str, name: str) -> torch.Tensor:
    if not isinstance(module, nn.Linear | nn.Embedding):
        got = type(module).__name__
        raise WeightFormatError(f"{name}: expected a weight of a Linear or an Embedding, got one of a {got}.")
    weight = getattr(module, parameter_name, None)
    if not isinstance(weight, torch.Tensor):
        raise WeightFormatError(f"{name}: expected a tensor, got {weight!r}.")
    return weight


def _joined(name: str) -> str:
    return f"{name}.weight" if name else "weight"
