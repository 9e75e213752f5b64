"""The model in PyTorch, on the GPU, with the weights of the program."""

from __future__ import annotations

import functools
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.whole_models.shapes import SHAPES
from etcuda.llm.checkpoint import read_config
from etcuda.llm.export import load_model
from etcuda.llm.model import TextModel
from etcuda.passes.graph.recipes import pieces_of


@functools.lru_cache(maxsize=1)
def eager_model(name: str, folder: pathlib.Path, device: str) -> TextModel:
    """The model that ``export_model`` traced, its quantised weights made bf16 again. The last one is kept."""
    shape = SHAPES[name]
    source = shape.write(folder / name)
    model, layers = load_model(source, read_config(source), shape.options("host"), lambda done, total: None)
    text_model = TextModel(model, layers).eval()
    # By the weight and not by its name: tied ones are made once.
    weights = {id(each): each for each in text_model.parameters()}
    with ThreadPoolExecutor(os.cpu_count()) as pool, torch.no_grad():
        made = dict(zip(weights, pool.map(lambda each: _plain(each, device), weights.values()), strict=True))
    for module in text_model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = nn.Parameter(made[id(weight)], requires_grad=False)
    return text_model.to(device)


def _plain(weight: Tensor, device: str) -> Tensor:
    """The weight on the device; a seeded one is made here, a quantised one dequantised there."""
    flatten: Any = getattr(weight, "__tensor_flatten__", None)
    if flatten is None or not hasattr(weight, "dequantize"):
        return _made(weight, device)
    names, context = flatten()
    parts = {name: _made(getattr(weight, name), device) for name in names}
    whole: Any = type(weight).__tensor_unflatten__(parts, context, weight.shape, weight.stride())
    plain: Tensor = whole.dequantize(torch.bfloat16)
    return plain


def _made(tensor: Tensor, device: str) -> Tensor:
    return torch.cat([piece.to(device).flatten() for piece in pieces_of(tensor)]).reshape(tensor.shape)
