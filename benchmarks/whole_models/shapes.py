"""The models: configurations as transformers reads them, which weights are quantised, and the depths measured."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from etcuda.llm.export import ExportOptions
from etcuda.llm.quantization import QuantOptions

SEED = 0
CONTEXTS = (512, 4096)
PROMPTS = (512, 2048)

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
}
_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_GEMMA4 = {
    "model_type": "gemma4_text",
    "vocab_size": 262144,
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_hidden_layers": 60,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "num_global_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "enable_moe_block": False,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
_QWEN3_5_MOE = {
    "model_type": "qwen3_5_moe_text",
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8,
    "num_experts": 256,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    "tie_word_embeddings": False,
}
# For a try on a machine without a GPU.
_TINY = {
    **_LLAMA,
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        config: for transformers.
        quant: format of linear layers, ``"int4"`` or ``"none"`` for bf16.
        rules: formats by name, which count before ``quant``.
    """

    config: dict[str, Any]
    quant: str
    rules: tuple[tuple[str, str], ...] = ()

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes ``config.json`` into ``folder`` and returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        value = {**self.config, "dtype": "bfloat16", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
        (folder / "config.json").write_text(json.dumps(value, indent=1) + "\n")
        return folder

    def options(self, target: str, write_weights: bool = True, device_sampling: bool = False) -> ExportOptions:
        """How it is exported: random weights, caches for the longest context and a prompt behind it."""
        length = max(CONTEXTS) + 64
        quant = QuantOptions(self.quant, rules=self.rules)
        return ExportOptions(
            target,
            max_seq_len=length,
            chunk=max(PROMPTS),
            random_seed=SEED,
            quant=quant,
            write_weights=write_weights,
            device_sampling=device_sampling,
        )


SHAPES = {
    "llama-3-8b-int4": Shape(_LLAMA, "int4"),
    "llama-3-8b-bf16": Shape(_LLAMA, "none"),
    "qwen3-0.6b-bf16": Shape(_QWEN3, "none"),
    "gemma4-31b-int4": Shape(_GEMMA4, "int4", (("*embed_tokens*", "int4"),)),
    "qwen3.5-35b-a3b-int4": Shape(_QWEN3_5_MOE, "int4"),
    "tiny-int4": Shape(_TINY, "int4"),
}
