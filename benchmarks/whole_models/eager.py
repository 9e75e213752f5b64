"""The model in PyTorch, on the GPU, with the weights of the program."""

from __future__ import annotations

import pathlib

import torch
from torch import nn

from benchmarks.whole_models.shapes import SHAPES
from etcuda.llm.checkpoint import read_config
from etcuda.llm.export import load_model
from etcuda.llm.model import TextModel


def eager_model(name: str, folder: pathlib.Path, device: str) -> TextModel:
    """The model that ``export_model`` traced, its quantised weights made bf16 again."""
    shape = SHAPES[name]
    source = shape.write(folder / name)
    model, layers = load_model(source, read_config(source), shape.options("host"), lambda done, total: None)
    text_model = TextModel(model, layers).eval()
    for module in text_model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and hasattr(weight, "dequantize") and type(weight.data) is not torch.Tensor:
            plain = weight.dequantize(torch.bfloat16)
            module.weight = nn.Parameter(plain, requires_grad=False)
    return text_model.to(device)
