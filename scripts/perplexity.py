"""Perplexity of the demo decoder with quantised weights, as rows of the table in docs/quantization.md.

    python scripts/perplexity.py

On held-out sonnets, which the decoder never saw, and on those that it was trained on, which it knows by heart.
Everything is computed in PyTorch on the CPU, with bf16 between layers; the int4 operators run their references.
"""

from __future__ import annotations

import math
import pathlib
import sys
from typing import Any

import torch
from torch import nn
from torch.nn import functional

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import etcuda  # noqa: E402
from examples.decoder.model import Decoder, encode, load_decoder  # noqa: E402

LENGTH = 256
TEXTS = {name: ROOT / "examples" / "decoder" / f"{name}.txt" for name in ("held_out", "sonnets")}


def perplexity(model: Decoder, text: str) -> float:
    """Per byte, over windows of ``LENGTH`` bytes."""
    tokens = torch.tensor(encode(text))
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, LENGTH):
            window = tokens[start : start + LENGTH + 1]
            logits = model.training_logits(window[None, :-1]).float()
            total += float(functional.cross_entropy(logits[0], window[1:], reduction="sum"))
            count += len(window) - 1
    return math.exp(total / count)


def weights(module: nn.Module, name: str) -> bool:
    """Every linear layer, and the embedding, which is the output projection too."""
    return isinstance(module, nn.Linear | nn.Embedding)


def main() -> None:
    """Prints the rows."""
    torch.set_num_threads(1)
    variants: list[tuple[str, dict[str, Any] | None]] = [
        ("bf16", None),
        ("group 32, zero point", {}),
        ("group 32, zero point, searched", {"scale_search": "least_squares"}),
        ("group 32, minimum", {"offset": "minimum"}),
        ("group 32, minimum, searched", {"offset": "minimum", "scale_search": "least_squares"}),
        ("group 32, symmetric", {"offset": "symmetric"}),
        ("group 128, zero point", {"group_size": 128}),
    ]
    print("| weights | bits | activations | held-out | by heart |")
    print("|---|---|---|---|---|")
    for name, options in variants:
        for activation in ("exact",) if options is None else ("exact", "int8"):
            model, bits = load_decoder().convert(torch.bfloat16), "16"
            if options is not None:
                config = etcuda.Int4CoalescedConfig(activation_dtype=activation, **options)
                etcuda.quantize_weights(model, config, weights)
                bits = f"{config.format(LENGTH).bits_per_weight():g}"
            held_out, by_heart = (perplexity(model, path.read_text()) for path in TEXTS.values())
            kind = "bf16" if activation == "exact" else "int8"
            print(f"| {name} | {bits} | {kind} | {held_out:.3f} | {by_heart:.4f} |", flush=True)


if __name__ == "__main__":
    main()
