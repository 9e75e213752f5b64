"""Whole models with etcuda's attention, with its plain formula, and with none: what each call takes.

The models have real heads and cache lengths and are narrow otherwise, so that their files are small: attention has a
larger share of a call than in a model of full width; its own time is that of a real one.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from etcuda import CompileOptions
from examples.cached_lm import CachedLM, export_cached
from examples.decoder.model import Decoder, DecoderConfig, export_decoder
from examples.export import export_program

MAX_LENGTH = 16384
PROMPT = 2048
VOCAB = 512
FILLED = (512, 4096, 16000)
# The formula, our kernels, and query rows passed through in the place of attention.
VARIANTS = ("formula", "kernels", "none")


@dataclasses.dataclass(frozen=True)
class Call:
    """A timed call: ``length`` tokens into a cache that holds ``filled``."""

    method: str
    filled: int
    length: int

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Tokens [1, length] and positions [length]."""
        tokens = torch.randint(0, VOCAB, (1, self.length), generator=torch.Generator().manual_seed(self.filled))
        return tokens, torch.arange(self.filled, self.filled + self.length)


CALLS = (Call("prefill", 0, PROMPT), *(Call("decode", filled, 1) for filled in FILLED))


def decoder() -> nn.Module:
    """The demo's decoder: 4 heads on 2 KV heads of 64."""
    config = DecoderConfig(
        VOCAB, dim=256, num_layers=2, num_heads=4, num_kv_heads=2, hidden_dim=256, max_seq=MAX_LENGTH
    )
    return Decoder(config).convert(torch.bfloat16)


def llama() -> nn.Module:
    """Heads of Llama 3 8B: 32 on 8, of 128."""
    from transformers import LlamaConfig

    return _cached(LlamaConfig(**_sizes(32, 8, 128)))


def qwen3() -> nn.Module:
    """Heads of Qwen3 0.6B: 16 on 8, of 128, normed."""
    from transformers import Qwen3Config

    return _cached(Qwen3Config(**_sizes(16, 8, 128)))


def gemma3() -> nn.Module:
    """Heads of Gemma3 4B: 8 on 4, of 256, normed; one layer with a window of 1024, one without."""
    from transformers import Gemma3TextConfig

    layers = ["sliding_attention", "full_attention"]
    return _cached(Gemma3TextConfig(**_sizes(8, 4, 256), sliding_window=1024, layer_types=layers))


MODELS: dict[str, Callable[[], nn.Module]] = {"decoder": decoder, "llama": llama, "qwen3": qwen3, "gemma3": gemma3}


def path_of(folder: pathlib.Path, name: str, variant: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The program and its weights, which the variants of a model share."""
    return folder / f"{name}-{variant}.pte", folder / f"{name}.ptd"


def export(name: str, target: str, folder: pathlib.Path) -> None:
    """Writes the three variants of a model and their weights."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]().eval().requires_grad_(False)
    for variant in VARIANTS:
        options = CompileOptions(attention_kernels=variant == "kernels", weights="ptd", ptd_name=name, progress=False)
        program, _ = path_of(folder, name, variant)
        export_program(_methods(model, variant), target, program, options)


def _methods(model: nn.Module, variant: str) -> dict[str, ExportedProgram]:
    def export_methods() -> dict[str, ExportedProgram]:
        return export_decoder(model, PROMPT) if isinstance(model, Decoder) else export_cached(model, PROMPT)

    if variant != "none":
        return export_methods()

    def query(q: Tensor, *_: Any, **__: Any) -> Tensor:
        return q

    with mock.patch.object(nn.functional, "scaled_dot_product_attention", query):
        return export_methods()


def _sizes(num_heads: int, num_kv_heads: int, head_dim: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": 128,
        "max_position_embeddings": MAX_LENGTH,
        "attn_implementation": "sdpa",
    }


def _cached(config: Any) -> CachedLM:
    from transformers import AutoModelForCausalLM

    return CachedLM(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval(), MAX_LENGTH)
