"""Loading a GGUF file into a model."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import torch
from torch import Tensor, nn

from etcuda.errors import GgufError
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.weights.gguf import GgufFile
from etcuda.kernels.weights.gguf_blocks import BLOCK_TYPES
from etcuda.kernels.weights.gguf_experts import experts_tensors, halves, is_experts, join_halves
from etcuda.kernels.weights.renamed import renamed_keyword
from etcuda.kernels.weights.tensor import CoalescedTensor

Names = Mapping[str, str] | Callable[[str], str | None]
# What makes a tensor, the parameter that it is for, and the format that it has, ``None`` for a plain one.
Keep = Callable[[Callable[[], Tensor], Tensor, GroupFormat | None], Tensor]

# Written by llama.cpp for itself; no module of a model has them.
_NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Architectures whose tensors llama.cpp stores as transformers has them, and how it changes those of the others.
_AS_THEY_ARE = ("qwen2", "qwen3", "qwen3moe", "gpt-oss")
_ROTATED = ("llama",)  # Rows of q and k are interleaved per head.
_SHIFTED = ("gemma2", "gemma3")  # Norms have 1 added.

_CHECKED = 1 << 20  # Values that are looked at at a time.


@dataclasses.dataclass(frozen=True)
class _Placement:
    """Tensors of the file, one or the halves of one, and the parameters that they become: several if they are tied."""

    sources: tuple[str, ...]
    target: str
    owners: list[tuple[nn.Module, str]]
    old: Tensor


@renamed_keyword("activation", "activation_dtype")
def load_gguf(
    model: nn.Module,
    path: str | os.PathLike[str],
    names: Names | None = None,
    *,
    activation_dtype: str = "int8",
    keep: Keep | None = None,
) -> dict[str, str]:
    """Puts the tensors of a GGUF file into a model, in place: quantised ones become the weights of linear layers and
    embeddings as our types, the others are converted to their parameter's dtype. One tensor is read at a time, and the
    model may lie on the meta device. Everything but the bytes is checked before the first parameter changes.

    Args:
        model: its parameters have the shapes of the file's tensors.
        path: of the file, or of the first of several, such as ``model-00001-of-00003.gguf``.
        names: the parameter's name by the tensor's, or a function from one to the other that gives ``None`` for a
            tensor to leave out. By default a tensor goes to the parameter of its own name, or, for models of
            ``transformers``, to the one that the ``gguf`` package maps it to; that serves the architectures llama,
            qwen2, qwen3, qwen3moe, gpt-oss, gemma2 and gemma3 and undoes what llama.cpp did to their tensors.
            Experts are those of ``etcuda.llm``, stacked, the rows of the gate first.
        activation_dtype: "int8" or "exact"; see ``CoalescedTensor``.
        keep: takes the place of reading a tensor: what it returns becomes the parameter.

    Returns:
        GGUF type of each parameter that was loaded, by its name in the model.

    Raises:
        GgufError: the file is damaged, or a part is missing; a tensor's name matches no parameter, a parameter has no
            tensor, or shape, type or module do not fit; or the parameter's dtype does not hold a tensor's values. The
            message has the names.
    """
    file = GgufFile(path)
    named = names is not None
    find = _finder(model, file, names)
    plan = _plan(model, file, find)
    for item in plan:
        old = item.old
        undo = not named and item.sources[0] != item.target
        make = functools.partial(_read, file, item, activation_dtype, undo)
        tensor = make() if keep is None else keep(make, old, file.format(item.sources[0]))
        where = "cpu" if old.device.type == "meta" else old.device
        parameter = nn.Parameter(tensor.to(where), requires_grad=False)
        for module, attribute in item.owners:
            setattr(module, attribute, parameter)
    return {item.target: file.types[item.sources[0]] for item in plan}


def _read(file: GgufFile, item: _Placement, activation_dtype: str, undo: bool) -> Tensor:
    """The tensor as the model has it; ``undo`` what llama.cpp's converter did."""
    parts = []
    for source in item.sources:
        tensor = file.read(source, activation_dtype, item.old.dtype)
        if undo:
            tensor = _as_transformers(tensor, source, file)
        if not isinstance(tensor, CoalescedTensor):
            tensor = _in_dtype(tensor, item.old.dtype, f"{file.path}: {source}")
        parts.append(tensor)
    return parts[0] if len(parts) == 1 else join_halves(parts)


def _plan(model: nn.Module, file: GgufFile, find: Callable[[str], str | None]) -> list[_Placement]:
    places = _places(model)
    plan: list[_Placement] = []
    taken: dict[int, str] = {}
    problems = []
    for source in file.types:
        target = find(source)
        if target is None:
            continue
        if target not in places:
            problems.append(f"{source}: expected the name of a parameter of the model, got {target!r}")
            continue
        old, owners = places[target]
        sources = halves(source)
        if id(old) in taken and taken[id(old)] not in sources:
            problems.append(f"{source}: expected one tensor for {target}, got {taken[id(old)]} too")
            continue
        problem = _misfit(file, source, old, owners)
        if problem is not None:
            problems.append(f"{source}: {problem}")
        if id(old) not in taken:
            plan.append(_Placement(sources, target, owners, old))
        taken[id(old)] = source
    problems += [
        f"{name}: expected a tensor for it, got none" for name, (old, _) in places.items() if id(old) not in taken
    ]
    if problems:
        listed = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise GgufError(f"{file.path}: the file and the model do not fit together:\n  {listed}{more}\nPass names=.")
    return plan


def _places(model: nn.Module) -> dict[str, tuple[Tensor, list[tuple[nn.Module, str]]]]:
    """Each parameter by every name that it has, and all modules that hold it."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    named: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            held = owners.setdefault(id(parameter), [])
            if (module, attribute) not in held:
                held.append((module, attribute))
            named[f"{prefix}.{attribute}" if prefix else attribute] = parameter
    return {name: (parameter, owners[id(parameter)]) for name, parameter in named.items()}


def _misfit(file: GgufFile, source: str, old: Tensor, owners: list[tuple[nn.Module, str]]) -> str | None:
    gguf_type, shape, wanted = file.types[source], file.shape(source), list(old.shape)
    sources = halves(source)
    if len(sources) == 2:
        other = sources[1 - sources.index(source)]
        if file.types.get(other) != gguf_type:
            return f"expected {other} of its type, {gguf_type}, got {file.types.get(other, 'none')}"
        wanted[1] //= 2
    if list(shape) != wanted:
        return f"expected the parameter's shape {wanted}, got {list(shape)}"
    if gguf_type in BLOCK_TYPES:
        for module, attribute in owners:
            if is_experts(attribute, old):
                continue
            if attribute != "weight" or not isinstance(module, nn.Linear | nn.Embedding):
                return f"expected a floating type for {attribute} of a {type(module).__name__}, got {gguf_type}"
    elif gguf_type not in ("F32", "F16", "BF16"):
        return f"expected a floating type or one of {', '.join(BLOCK_TYPES)}, got {gguf_type}"
    return None


def _finder(model: nn.Module, file: GgufFile, names: Names | None) -> Callable[[str], str | None]:
    if callable(names):
        return names
    if names is not None:
        chosen = names
        unknown = [source for source in chosen if source not in file.types]
        if unknown:
            raise GgufError(f"{file.path}: names: expected names of the file's tensors, got {', '.join(unknown)}.")
        # A tensor that is not in the mapping matches nothing, and the message says so.
        return lambda source: chosen.get(source, source)
    mapped = _names_of_transformers(model, file)

    def find(source: str) -> str | None:
        return None if source in _NOT_WEIGHTS else mapped.get(source, source)

    return find


def _names_of_transformers(model: nn.Module, file: GgufFile) -> dict[str, str]:
    """Parameter's name by tensor's, for an architecture whose changes we know how to undo."""
    arch = file.architecture
    if arch not in (*_AS_THEY_ARE, *_ROTATED, *_SHIFTED):
        return {}
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(number, int(file.field(f"{arch}.block_count") or 0))
    found: dict[str, str] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        experts = experts_tensors(name)
        if experts:
            found |= dict.fromkeys(experts, name)
            continue
        mapped = table.get_name(name, try_suffixes=(".weight", ".bias"))
        # A tied head has a name of its own, which the file may lack: the embedding's serves both.
        if mapped is not None and mapped not in file.types and mapped == "output.weight":
            continue
        if mapped is not None:
            # Parameters that are called neither weight nor bias are weights in the file.
            found[mapped if mapped in file.types else mapped.removesuffix(".weight") + ".weight"] = name
    return found


def _as_transformers(tensor: Tensor, source: str, file: GgufFile) -> Tensor:
    """Undoes what llama.cpp's converter did to a tensor."""
    arch = file.architecture
    if arch in _SHIFTED and source.endswith("norm.weight"):
        return tensor.to(torch.float32) - 1
    if arch in _ROTATED and (".attn_q." in source or ".attn_k." in source):
        heads = file.field(f"{arch}.attention.head_count")
        if ".attn_k." in source:
            heads = file.field(f"{arch}.attention.head_count_kv") or heads
        return _take_rows(tensor, _rotated_rows(tensor.shape[0], heads, source))
    return tensor


def _rotated_rows(rows: int, heads: Any, source: str) -> Tensor:
    if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
        raise GgufError(f"{source}: expected rows for whole pairs of each head, got {rows} rows and {heads} heads.")
    return torch.arange(rows).reshape(heads, rows // heads // 2, 2).transpose(1, 2).flatten()


def _in_dtype(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The values in ``dtype``: finite ones must stay so, and a row of a weight must not become zero."""
    made = tensor.to(dtype)
    if dtype in (tensor.dtype, torch.float32):
        return made
    width = tensor.shape[-1] if tensor.dim() > 1 else 1
    step = max(1, _CHECKED // width)
    values, stored = tensor.reshape(-1, width), made.reshape(-1, width)
    for start in range(0, len(values), step):
        before, after = values[start : start + step], stored[start : start + step]
        is_lost = (torch.isfinite(before) & ~torch.isfinite(after)).any(dim=-1)
        if tensor.dim() > 1:
            is_lost |= (before != 0).any(dim=-1) & ~(after != 0).any(dim=-1)
        if bool(is_lost.any()):
            row = int(torch.nonzero(is_lost)[0])
            raise GgufError(
                f"{name}: row {start + row}: expected values that the parameter's dtype holds, {dtype}, got "
                f"{float(before[row].abs().max()):.3g} at most. Load into a model of float32 or bfloat16."
            )
    return made


def _take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    if not isinstance(tensor, CoalescedTensor):
        return tensor.index_select(0, rows)
    taken: Tensor = tensor._map(lambda stored: stored.index_select(0, rows))
    return taken
