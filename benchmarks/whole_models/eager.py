"""The model in PyTorch, on the GPU, with the weights of the program."""

from __future__ import annotations

import functools
import math
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.whole_models.shapes import SHAPES
from etcuda.llm.checkpoint import read_config
from etcuda.llm.export import load_model
from etcuda.llm.make_weights import SUFFIX
from etcuda.llm.model import TextModel
from etcuda.llm.random_weights import RandomPart
from etcuda.llm.weights_description import pieces_of, read
from etcuda.passes.graph.recipes import recipe_of

# The same part of a weight: bytes in the file.
Stored = dict[tuple[str, str], Tensor]


@functools.lru_cache(maxsize=1)
def eager_model(name: str, folder: pathlib.Path, device: str) -> TextModel:
    """The model that ``export_model`` traced, with the weights of its ``.ptd``, quantised ones made bf16 again.

    The last one is kept. It wants the description of the weights, ``NAME.weights.json``: what is not in the file, or a
    program that was exported with its weights, is made from the seed.
    """
    shape = SHAPES[name]
    source = shape.write(folder / name)
    model, layers = load_model(source, read_config(source), shape.options("host"), lambda done, total: None, defer=True)
    text_model = TextModel(model, layers).eval()
    stored = _stored(folder / f"{name}{SUFFIX}", folder / f"{name}.ptd")
    # By the weight and not by its name: tied ones are made once.
    weights = {id(each): each for each in text_model.parameters()}
    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        done = pool.map(lambda each: _plain(each, stored, device), weights.values())
        made = dict(zip(weights, done, strict=True))
    for module in text_model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = nn.Parameter(made[id(weight)], requires_grad=False)
    return text_model.to(device)


def _stored(description: pathlib.Path, file: pathlib.Path) -> Stored:
    """The parts of the weights that the file holds whole, mapped."""
    if not description.is_file():
        return {}
    data = torch.from_numpy(np.memmap(file, np.uint8, mode="c"))
    known, stored = read(description), {}
    for entry in known.entries:
        offset = entry.offset
        for weight, part, nbytes in pieces_of(known, entry):
            stored[weight, part] = data[offset : offset + nbytes]
            offset += nbytes
    return stored


def _plain(weight: Tensor, stored: Stored, device: str) -> Tensor:
    """The weight on the device, where a quantised one is dequantised."""
    flatten: Any = getattr(weight, "__tensor_flatten__", None)
    if flatten is None or not hasattr(weight, "dequantize"):
        return _made(weight, stored, device)
    names, context = flatten()
    parts = {name: _made(getattr(weight, name), stored, device) for name in names}
    whole: Any = type(weight).__tensor_unflatten__(parts, context, weight.shape, weight.stride())
    plain: Tensor = whole.dequantize(torch.bfloat16)
    return plain


def _made(tensor: Tensor, stored: Stored, device: str) -> Tensor:
    recipe = recipe_of(tensor)
    if not isinstance(recipe, RandomPart):
        return tensor.to(device)
    data = stored.get((recipe.weight.name, recipe.part))
    if data is not None and len(data) == math.prod(tensor.shape) * tensor.itemsize:
        return data.to(device).view(tensor.dtype).reshape(tensor.shape)
    return torch.cat([piece.to(device).flatten() for piece in recipe.pieces()]).reshape(tensor.shape)
