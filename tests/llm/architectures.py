"""Small random models of every named architecture, as transformers makes and saves them."""

from __future__ import annotations

import pathlib
from typing import Any

import torch

VOCAB = 512
BOS, EOS = 1, 2
WINDOW = 8
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
_GEMMA = {
    "head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 24,
    # A tied head of random numbers says the same token again and again.
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "rope_parameters": _LLAMA3},
    "qwen2": _COMMON,
    "qwen3": {**_COMMON, "head_dim": 32, "tie_word_embeddings": True},
    "mistral": {**_COMMON, "sliding_window": WINDOW},
    "phi3": _COMMON,
    "gemma2": {**_COMMON, **_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**_COMMON, **_GEMMA},
    "gemma4_text": {
        **_COMMON,
        **_GEMMA,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "enable_moe_block": False,
    },
    "olmo2": _COMMON,
    "gpt2": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "granite": {
        **_COMMON,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "smollm3": _COMMON,
}
_OTHERS = ("gemma", "olmo", "starcoder2", "stablelm", "cohere", "phi", "glm4", "nemotron", "opt", "olmo3", "cohere2")
# More of what transformers lists.
OTHERS: dict[str, dict[str, Any]] = {
    name: _COMMON | ({"sliding_window": WINDOW} if name in ("olmo3", "cohere2") else {}) for name in _OTHERS
}
# Mixtures of experts; GPT-OSS has sinks, and experts with biases.
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 96}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_COMMON, **_EXPERTS, "num_experts": 4, "head_dim": 32, "norm_topk_prob": True},
    "olmoe": {**_COMMON, **_EXPERTS, "num_experts": 4},
    "gpt_oss": {
        **_COMMON,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}
# Attention over latents, a first layer without experts, and groups of experts.
EXPERTS["deepseek_v3"] = {
    **_COMMON,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
EXPERTS["gemma4_text experts"] = {
    **CONFIGS["gemma4_text"],
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 96,
}
# Layers that attend to another layer's keys, and inputs of each layer by itself.
OTHERS["gemma4_text shared"] = {
    **CONFIGS["gemma4_text"],
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCAB,
}
# Layers with a recurrent state: gated delta nets, and selective scans.
_DELTA = {
    **_COMMON,
    **_EXPERTS,
    "num_experts": 4,
    "head_dim": 16,
    "shared_expert_intermediate_size": 32,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}
RECURRENT: dict[str, dict[str, Any]] = {
    "qwen3_next": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    "mamba2": {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 24,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "falcon_h1": {
        **_COMMON,
        "mamba_d_ssm": 96,
        "mamba_n_heads": 6,
        "mamba_d_head": 16,
        "mamba_n_groups": 2,
        "mamba_d_state": 24,
        "mamba_chunk_size": 8,
        "ssm_multipliers": [0.7, 1.2, 0.8, 1.1, 0.9],
    },
}


def reference(name: str, deviation: float = 0.3, **changes: Any) -> Any:
    """The model of an architecture in fp32, by transformers alone; ``deviation`` is that of its weights, ``changes``
    are of its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        name.split()[0],
        **{**(CONFIGS | OTHERS | EXPERTS | RECURRENT)[name], **changes},
        initializer_range=deviation,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # Norms and biases: ones and zeros would hide that they are left out.
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def save(name: str, folder: pathlib.Path, deviation: float = 0.3) -> Any:
    """Saves a checkpoint; returns the model."""
    model = reference(name, deviation)
    model.save_pretrained(folder)
    return model


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens, none of them special."""
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    """What transformers' own ``generate`` answers; the token that ends an answer does not."""
    # A configuration that is passed takes what it does not set from the model's.
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    with torch.no_grad():
        out = model.generate(torch.tensor([tokens]), max_new_tokens=count, do_sample=False)
    answer: list[int] = out[0, len(tokens) :].tolist()
    return answer
