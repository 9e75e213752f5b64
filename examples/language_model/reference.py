"""What transformers says with the weights that a program has: dequantised ones in a model of its own."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import gguf
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import etcuda
from examples.language_model.train import CHECKPOINT


def int4_model() -> Any:
    """The checkpoint in float32 with the weights that ``etcuda export --quant int4`` makes of it."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    # The embedding too, whose weight is the head's.
    etcuda.quantize_weights(
        model, etcuda.Int4CoalescedConfig(), lambda module, name: isinstance(module, nn.Linear | nn.Embedding)
    )
    dequantised: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, etcuda.Int4CoalescedTensor):
            made = nn.Parameter(weight.dequantize().to(torch.float32), requires_grad=False)
            module.weight = dequantised.setdefault(id(weight), made)
    return model


def gguf_model(path: pathlib.Path) -> Any:
    """The model of a GGUF file in float32, dequantised by the ``gguf`` package."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    config = model.config
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"attn_q.": config.num_attention_heads, "attn_k.": config.num_key_value_heads}
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mapped = table.get_name(name, try_suffixes=(".weight",)) or ""
            tensor = read[mapped]
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
            for part, count in heads.items():
                if part in mapped:
                    # Rows of a head are interleaved in the file.
                    pairs = values.reshape(count, -1, 2, config.hidden_size)
                    values = pairs.transpose(1, 2).reshape(values.shape)
            parameter.copy_(values)
    return model


def greedy(model: Any, prompt: str, count: int) -> tuple[str, float]:
    """The likeliest continuation of a prompt by ``count`` tokens, and the tokens a second that it took."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    start = time.perf_counter()
    with torch.no_grad():
        made = model.generate(**inputs, do_sample=False, max_new_tokens=count)
    new = made[0, inputs.input_ids.shape[1] :]
    text: str = tokenizer.decode(new, skip_special_tokens=True)
    return text, len(new) / (time.perf_counter() - start)
