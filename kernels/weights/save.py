"""Quantised weights in safetensors files: each stored tensor by itself, the rest in the file's metadata.

A weight ``layer.weight`` is written as ``layer.weight.qdata``, ``layer.weight.scale`` and so on.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etcuda.errors import WeightFormatError
from etcuda.files import replacing, saving
from etcuda.kernels.formats.registry import find
from etcuda.kernels.weights.tensor import CoalescedTensor

_KEY = "etcuda"
_VERSION = 1


def save_weights(weights: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes a model's weights, or a state dictionary, plain and quantised ones, as safetensors. Tensors that share
    memory are written once. A reader sees a whole file or the old one.

    Raises:
        SaveError: the file cannot be written.
        WeightFormatError: a name is not free, or a tensor is of a type that cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors, header = _flattened(named)
    target = pathlib.Path(path)
    with saving(target), replacing([target]) as (written,):
        try:
            save_file(tensors, written, metadata={_KEY: json.dumps(header)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load_weights(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Reads what ``save_weights`` wrote, for ``model.load_state_dict(..., assign=True)``. Names that were one tensor
    are one tensor.

    Raises:
        WeightFormatError: the file is damaged, or its stored tensors do not fit together; the message has the name.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightFormatError(f"{path}: expected a safetensors file, got: {error}. Is it complete?") from error
    if header is None:
        return tensors
    try:
        version, quantized, same = header["version"], header["weights"], header["same"]
    except (KeyError, TypeError) as error:
        raise WeightFormatError(f"{path}: expected etcuda's metadata, got {header!r}.") from error
    if version != _VERSION:
        raise WeightFormatError(f"{path}: expected version {_VERSION}, got {version!r}. Update etcuda.")
    for name, entry in quantized.items():
        tensors[name] = _tensor(name, entry, tensors)
    for name, first in same.items():
        if first not in tensors:
            raise WeightFormatError(f"{path}: {name}: expected the tensor {first!r}, got none of that name.")
        tensors[name] = tensors[first]
    return tensors


def _flattened(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    quantized: dict[str, Any] = {}
    same: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in named.items():
        stored = tensor.components if isinstance(tensor, CoalescedTensor) else {"": tensor}
        key = (type(tensor), *map(_identity, stored.values()))
        if key in seen and all(each.numel() for each in stored.values()):
            same[name] = seen[key]
            continue
        seen[key] = name
        if isinstance(tensor, CoalescedTensor):
            tensor.check_finite(name)
            quantized[name] = {
                "type": tensor.format_type.name,
                "group_size": tensor.group_size,
                # The key of version 1 is older than the attribute's name, and files are read for longer than that.
                "activation": tensor.activation_dtype,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "parts": list(stored),
            }
        elif type(tensor) not in (Tensor, nn.Parameter):
            raise WeightFormatError(f"{name}: expected a plain tensor or one of ours, got a {type(tensor).__name__}.")
        for component, values in stored.items():
            full = f"{name}.{component}" if component else name
            if full in tensors or (full in named and component):
                raise WeightFormatError(
                    f"{name}: expected the name {full} to be free, got another tensor of that name."
                )
            tensors[full] = _whole(values)
    return tensors, {"version": _VERSION, "weights": quantized, "same": same}


def _identity(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _whole(tensor: Tensor) -> Tensor:
    # safetensors refuses views of a larger memory.
    tensor = tensor.detach()
    is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if is_view else tensor.contiguous()


def _tensor(name: str, entry: Any, tensors: dict[str, Tensor]) -> Tensor:
    try:
        tensor_type, dtype = find(entry["type"]).tensor_type, getattr(torch, entry["dtype"])
        components = {each: tensors.pop(f"{name}.{each}") for each in entry["parts"]}
        group_size, activation_dtype = entry["group_size"], entry["activation"]
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightFormatError(f"{name}: expected its type, attributes and stored tensors, got {entry!r}.") from error
    made: Tensor = tensor_type.from_components(components, group_size, activation_dtype, dtype, name)
    return made
