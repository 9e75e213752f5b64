"""Configurations of mixtures of experts in GGUF files: what transformers does not read, or leaves at its defaults."""

from __future__ import annotations

import pathlib
from typing import Any

from etcuda.errors import CheckpointError
from etcuda.kernels.weights.gguf import GgufFile


def is_mixture(file: GgufFile) -> bool:
    """Whether a file's model has experts."""
    return bool(file.field(f"{file.architecture}.expert_count"))


def mixture_config(file: GgufFile, read: Any, path: pathlib.Path) -> Any:
    """The configuration of a file with experts, of the architecture llama, qwen3moe or gpt-oss.

    Args:
        file: the file.
        read: returns the configuration as transformers reads it.
        path: for errors.

    Raises:
        CheckpointError: the file lacks a field, or its experts are those of another architecture.
    """
    arch = file.architecture
    if arch == "gpt-oss":
        return _gpt_oss(file, path)
    if arch not in ("llama", "qwen3moe"):
        raise CheckpointError(
            f"{path}: expected experts in the GGUF architectures gpt-oss, llama and qwen3moe, got them in {arch!r}. "
            "Export the checkpoint in the Hub's format instead."
        )
    config = read()
    if arch == "llama":
        from transformers import MixtralConfig

        given = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
        return MixtralConfig(**given, **_experts(file, path, "num_local_experts"))
    # llama.cpp always divides a token's weights by their sum.
    config.norm_topk_prob = True
    config.moe_intermediate_size = _integer(file, path, "expert_feed_forward_length")
    return config


def _gpt_oss(file: GgufFile, path: pathlib.Path) -> Any:
    from transformers import GptOssConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(_field(file, path, "rope.freq_base"))}
    scaling = file.field("gpt-oss.rope.scaling.type")
    if scaling == "yarn":
        rope |= {
            "rope_type": "yarn", "factor": float(_field(file, path, "rope.scaling.factor")), "truncate": False,
            "original_max_position_embeddings": _integer(file, path, "rope.scaling.original_context_length"),
            "beta_fast": float(file.field("gpt-oss.rope.scaling.yarn_beta_fast") or 32.0),
            "beta_slow": float(file.field("gpt-oss.rope.scaling.yarn_beta_slow") or 1.0),
        }  # fmt: skip
    elif scaling not in (None, "none"):
        raise CheckpointError(
            f"{path}: rope.scaling.type: expected yarn or none, got {scaling!r}. Export the checkpoint in the Hub's "
            "format instead."
        )
    heads = _integer(file, path, "attention.head_count")
    hidden = _integer(file, path, "embedding_length")
    return GptOssConfig(
        hidden_size=hidden, num_attention_heads=heads,
        num_key_value_heads=int(file.field("gpt-oss.attention.head_count_kv") or heads),
        head_dim=int(file.field("gpt-oss.attention.key_length") or hidden // heads),
        num_hidden_layers=_integer(file, path, "block_count"),
        intermediate_size=_integer(file, path, "expert_feed_forward_length"),
        max_position_embeddings=_integer(file, path, "context_length"),
        rms_norm_eps=float(_field(file, path, "attention.layer_norm_rms_epsilon")),
        sliding_window=_integer(file, path, "attention.sliding_window"), rope_parameters=rope,
        **_experts(file, path, "num_local_experts"),
    )  # fmt: skip


def _experts(file: GgufFile, path: pathlib.Path, count: str) -> dict[str, int]:
    return {
        count: _integer(file, path, "expert_count"), "num_experts_per_tok": _integer(file, path, "expert_used_count"),
    }  # fmt: skip


def _integer(file: GgufFile, path: pathlib.Path, key: str) -> int:
    return int(_field(file, path, key))


def _field(file: GgufFile, path: pathlib.Path, key: str) -> Any:
    found = file.field(f"{file.architecture}.{key}")
    if found is None:
        raise CheckpointError(
            f"{path}: expected {file.architecture}.{key} in the header, got none. Convert the model again."
        )
    return found
