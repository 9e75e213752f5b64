"""Puts weights into a model that lies on the meta device, one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etcuda.errors import CheckpointError
from etcuda.llm.checkpoint import Weights
from etcuda.llm.stacked_experts import stacked

# Of a tensor read, its name and its module: the tensor to keep.
Convert = Callable[[Tensor, str, nn.Module], Tensor]
_LISTED = 20
# What the text model is called in models that see and hear too.
_TEXT = "language_model."


def assign(model: Any, weights: Weights, convert: Convert, progress: Callable[[int, int], None]) -> None:
    """Gives every parameter and persistent buffer its values.

    Args:
        model: of transformers, on the meta device, its other buffers computed.
        weights: has a tensor for each, by the name in the model, with or without the prefix of the base model, or as
            the text model among others, whose tensors are left out.
        convert: what becomes of a tensor.
        progress: hears how many bytes of how many are done, as they lie in the model.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape, of integers, or stored twice with different
            values where the configuration has one for both; all are listed.
    """
    wanted = model.state_dict(keep_vars=True)
    tied: dict[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
    weights = stacked(weights, wanted)
    sources = _sources(model, wanted, weights, tied)
    total = sum(wanted[name].nbytes for name in sources)
    done = 0
    for name, source in sources.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        value = convert(weights.read(source), name, module)
        if attribute in module._buffers:
            module._buffers[attribute] = value
        else:
            setattr(module, attribute, nn.Parameter(value, requires_grad=False))
        done += wanted[name].nbytes
        progress(done, total)
    _tie(model)


def to_dtype(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """The tensor in ``dtype``; itself, and so still in its mapped file, if it has that.

    Raises:
        CheckpointError: it is of integers, or a finite number became infinite.
    """
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{name}: expected floating numbers, got {tensor.dtype}. Of quantised checkpoints, those of AWQ, GPTQ and "
            "torchao are read, which config.json names."
        )
    made = tensor.to(dtype)
    if dtype == torch.float16 and bool((made.isinf() & tensor.isfinite()).any()):
        raise CheckpointError(
            f"{name}: expected numbers that {dtype} holds, got {float(tensor.abs().max()):.3g} at most. "
            "Export with --dtype bf16."
        )
    return made


def _sources(model: Any, wanted: dict[str, Tensor], weights: Weights, tied: Mapping[str, str]) -> dict[str, str]:
    """The name in the file of each tensor of the model. ``tied`` has the names of those that share another's."""
    prefix = f"{model.base_model_prefix}."
    given = set(weights.names())
    sources: dict[str, str] = {}
    problems = []
    copies: dict[str, str] = {}
    for name, parameter in wanted.items():
        found = next((each for each in _spellings(name, prefix) if each in given), None)
        if found is None and name not in tied:
            # Some files have the other one of a head and an embedding that are one.
            others = [each for each, source in tied.items() if source == name]
            spelled = (spelling for each in others for spelling in _spellings(each, prefix))
            found = next((each for each in spelled if each in given), None)
            if found is None:
                problems.append(f"{name}: expected a tensor for it, got none")
        if found is None:
            continue
        given.discard(found)
        if name in tied:
            copies[name] = found
            continue
        sources[name] = found
        if weights.shape(found) != tuple(parameter.shape):
            problems.append(f"{name}: expected shape {list(parameter.shape)}, got {list(weights.shape(found))}")
    for name, copy in copies.items():
        source = sources.get(tied[name])
        if source not in (None, copy) and not _same(weights, source, copy):
            problems.append(
                f"{name}: expected the values of {tied[name]}, which config.json says it shares, got others; set "
                "tie_word_embeddings to false there"
            )
    if any(_TEXT in source for source in sources.values()):
        given = {name for name in given if _TEXT in name}
    problems += [
        f"{name}: expected a name of the model, got another" for name in sorted(given) if not _ignored(name, model)
    ]
    if problems:
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        listed = "\n  ".join(problems[:_LISTED])
        raise CheckpointError(
            f"the checkpoint and the model {type(model).__name__} do not fit together:\n  {listed}{more}\n"
            "Check that config.json belongs to these weights."
        )
    return sources


def _same(weights: Weights, one: str, other: str) -> bool:
    """Whether two tensors have the same values; of quantised ones that is not asked."""
    if weights.shape(one) != weights.shape(other):
        return False
    first, second = weights.read(one), weights.read(other)
    if type(first) is not Tensor or type(second) is not Tensor:
        return True
    return torch.equal(first, second.to(first.dtype))


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """Names that a tensor may have in a file."""
    bare = name.removeprefix(prefix)
    return name, bare, prefix + name, _TEXT + name, prefix + _TEXT + bare


def _ignored(name: str, model: Any) -> bool:
    # Old checkpoints keep what is computed: masks of GPT-2, frequencies of Llama.
    if name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")):
        return True
    # What transformers leaves out of the model's class, such as layers that guess tokens ahead.
    patterns: list[str] = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    return any(re.search(pattern, name) for pattern in patterns)


def _tie(model: Any) -> None:
    model.tie_weights()
    left = [name for name, value in model.state_dict(keep_vars=True).items() if value.device.type == "meta"]
    if left:
        raise CheckpointError(
            f"{type(model).__name__}: expected every weight to have values, got none for {', '.join(left)}. "
            "Please report it with the architecture."
        )
