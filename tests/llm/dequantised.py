"""The models that quantised programs are compared with: transformers' own, with the values of the quantised weights."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import torch
from torch import Tensor

from etcuda.kernels.weights.tensor import CoalescedTensor
from etcuda.llm.checkpoint import read_config
from etcuda.llm.experts import file_layout
from etcuda.llm.export import ExportOptions, load_model
from etcuda.llm.model import TextModel
from etcuda.llm.quantization import QuantOptions
from tests.llm.architectures import prompt


def straight(value: Tensor, key: str) -> Tensor:
    """A tensor of GPT-OSS's experts as ours: rows of the gate, then the others, columns last."""
    if ".experts." not in key:
        return value
    value = value if key.endswith("bias") else value.transpose(1, 2)
    return torch.cat([value[:, ::2], value[:, 1::2]], 1) if "gate_up" in key else value


def crooked(value: Tensor, key: str) -> Tensor:
    """The other way round."""
    if ".experts." not in key:
        return value
    value = torch.stack(value.chunk(2, 1), 2).flatten(1, 2) if "gate_up" in key else value
    return value if key.endswith("bias") else value.transpose(1, 2)


def state_for(model: Any, whole: Any) -> dict[str, Tensor]:
    """The weights of transformers' model ``whole`` in the layout of ours."""
    is_straight = file_layout(model) is not None
    return {key: straight(value, key) if is_straight else value for key, value in whole.state_dict().items()}


def dequantised(model: Any, whole: Any) -> Any:
    """A copy of transformers' model ``whole`` with the values of the weights that are quantised in ``model``."""
    made, is_crooked = copy.deepcopy(whole), file_layout(model) is not None
    for key, value in model.named_parameters():
        if isinstance(value, CoalescedTensor):
            values = value.dequantize()
            made.get_parameter(key).copy_(crooked(values, key) if is_crooked else values)
    return made


def load_quantised(folder: pathlib.Path, quant: str, dtype: str = "fp32") -> TextModel:
    """The model of a checkpoint as it is exported."""
    options = ExportOptions(
        target="host", dtype=dtype, max_seq_len=64, chunk=16, quant=QuantOptions(quant, activation_dtype="exact")
    )
    model, layers = load_model(folder, read_config(folder), options, lambda done, total: None)
    return TextModel(model, layers).eval()


def logits(model: TextModel, count: int = 30, step: int = 10) -> Tensor:
    """Behind a prompt of so many tokens, given in chunks; [1, vocabulary]."""
    tokens = torch.tensor([prompt(count)])
    with torch.no_grad():
        for start in range(0, count, step):
            got: Tensor = model(tokens[:, start : start + step], torch.arange(start, min(start + step, count)))
    return got


def transformers_logits(whole: Any, count: int = 30) -> Tensor:
    """Likewise, of transformers' model."""
    with torch.no_grad():
        made: Tensor = whole(torch.tensor([prompt(count)])).logits[0, -1:]
    return made
