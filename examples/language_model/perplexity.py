"""Perplexity on the held-out chapters, of the model and of what quantisation makes of it.

    python -m examples.language_model.perplexity

prints the rows of the table of weights in docs/quantization.md, with ``--caches`` those of the table of caches.
Everything is computed in PyTorch on the CPU with bf16 between
layers, by the same operators that an export delegates, which compute their formula here. On one thread it takes some
minutes; ``--windows`` takes fewer of the text.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import etcuda
from etcuda.kernels.quantized_cache.codes import decode, encode
from etcuda.kernels.quantized_cache.formats import FORMATS
from etcuda.kernels.quantized_cache.rotation import unrotate
from examples.language_model.text import chapters
from examples.language_model.tokenizer import MAX_LENGTH
from examples.language_model.train import CHECKPOINT
from examples.language_model.train import encode as encode_texts

BATCH = 8
Config = etcuda.Int4CoalescedConfig | etcuda.Int8CoalescedConfig


class HeldOut:
    """The held-out chapters as windows of ``MAX_LENGTH`` tokens, the first of which begins a text.

    Args:
        tokenizer: of the checkpoint.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        stream = torch.cat(encode_texts(chapters().held_out, tokenizer))
        rows = stream[: len(stream) // (MAX_LENGTH - 1) * (MAX_LENGTH - 1)].reshape(-1, MAX_LENGTH - 1)
        self._all = torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], 1)

    def windows(self, count: int | None = None) -> Tensor:
        """All of them, or ``count`` spread over the text, [windows, MAX_LENGTH] int64."""
        return self._all if count is None else self._all[:: max(1, len(self._all) // count)][:count]


def perplexity(model: nn.Module, windows: Tensor) -> float:
    """Per token, over all tokens but the first of each window."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(windows), BATCH):
            batch = windows[start : start + BATCH]
            logits = model(batch[:, :-1], use_cache=False).logits.float()
            total += float(functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / windows[:, 1:].numel())


def variants() -> Iterator[tuple[str, Config | None]]:
    """Each row's name and configuration, weights alone and with int8 activations; first the model as it is."""
    yield "bf16", None
    activations: tuple[Any, ...] = ("exact", "int8")
    int4: dict[str, dict[str, Any]] = {
        "int4, group 32, zero point": {},
        "int4, group 32, zero point, searched": {"scale_search": "least_squares"},
        "int4, group 32, symmetric": {"offset": "symmetric"},
        "int4, group 32, minimum": {"offset": "minimum"},
        "int4, group 32, minimum, scale codes": {"offset": "minimum", "scale_storage": "codes"},
        "int4, group 128, zero point": {"group_size": 128},
    }
    for kind in activations:
        yield "int8, group 32", etcuda.Int8CoalescedConfig(activation_dtype=kind)
    for name, options in int4.items():
        for kind in activations:
            yield name, etcuda.Int4CoalescedConfig(activation_dtype=kind, **options)


def quantised(config: Config | None) -> Any:
    """The checkpoint's model in bf16, every linear layer and the tied embedding in the format of ``config``."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.bfloat16).eval()
    if config is not None:
        etcuda.quantize_weights(model, config, lambda module, name: isinstance(module, nn.Linear | nn.Embedding))
    return model


def with_cache(name: str) -> Any:
    """The checkpoint's model in bf16, whose attention reads keys and values as a cache of a format gives them back."""

    def coded(x: Tensor) -> Tensor:
        found = decode(*encode(x, name), name)
        return (unrotate(found) if FORMATS[name].is_rotated else found).to(x.dtype)

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any) -> Any:
        return sdpa_attention_forward(module, query, coded(key), coded(value), *more, **named)

    AttentionInterface.register(f"cache_{name}", attention)
    AttentionMaskInterface.register(f"cache_{name}", sdpa_mask)
    kind = {"dtype": torch.bfloat16, "attn_implementation": f"cache_{name}"}
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, **kind).eval()


def print_caches(windows: Tensor) -> None:
    """The table of caches."""
    print("| cache | bytes of a vector of 128 | perplexity |\n|---|---|---|")
    print(f"| bf16 | 256 | {perplexity(quantised(None), windows):.3f} |", flush=True)
    for name, each in FORMATS.items():
        print(f"| {name} | {each.vector_bytes(128)} | {perplexity(with_cache(name), windows):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, help="of the text; all without it")
    parser.add_argument("--caches", action="store_true", help="of caches, not of weights")
    given = parser.parse_args()
    windows = HeldOut(AutoTokenizer.from_pretrained(CHECKPOINT)).windows(given.windows)
    torch.set_num_threads(1)
    if given.caches:
        print_caches(windows)
        return
    print("| weights | bits | activations | perplexity |\n|---|---|---|---|")
    for name, config in variants():
        model = quantised(config)
        bits = "16" if config is None else f"{config.format(model.config.hidden_size).bits_per_weight():g}"
        activations = "bf16" if config is None or config.activation_dtype == "exact" else "int8"
        print(f"| {name} | {bits} | {activations} | {perplexity(model, windows):.3f} |", flush=True)


if __name__ == "__main__":
    main()
