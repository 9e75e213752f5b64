"""Language models of transformers over a static KV cache, the way transformers exports them for ExecuTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from examples.depth import times


class CachedLM(nn.Module):
    """A causal language model and its cache, [1, num_kv_heads, max_length, head_dim] per layer.

    Layers with a sliding window keep a cache of full length too: transformers replaces their ring buffers, whose
    control flow depends on data, before it exports.

    Args:
        model: a ``PreTrainedModel`` for causal language modelling, with ``use_cache`` on.
        max_length: tokens that the cache holds.
    """

    def __init__(self, model: Any, max_length: int) -> None:
        from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

        super().__init__()
        model.generation_config.cache_implementation = "static"
        self.max_length = max_length
        self.lm = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=max_length).model

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        """Appends tokens to the cache.

        Args:
            input_ids: [1, L] int64.
            cache_position: [L] int64, where each token goes; consecutive. transformers reads the first alone.

        Returns:
            logits [1, L, vocab_size].
        """
        out: Tensor = self.lm(input_ids=input_ids, cache_position=cache_position)
        return out

    def convert(self, dtype: torch.dtype) -> CachedLM:
        """The same weights in ``dtype`` over an empty cache of that dtype."""
        return CachedLM(self.lm.model.to(dtype), self.max_length)

    def reset(self) -> None:
        """Empties the cache."""
        for name, buffer in self.lm.named_buffers(recurse=False):
            if name.startswith(("key_cache", "value_cache", "cumulative_length")):
                buffer.zero_()


def qwen3(dtype: torch.dtype, max_length: int, vocab_size: int) -> CachedLM:
    """Two small Qwen3 layers: 4 query heads on 2 KV heads of 128, norms on queries and keys."""
    from transformers import Qwen3Config

    return _cached(Qwen3Config(**_sizes(vocab_size, max_length), head_dim=128), dtype, max_length)


def gemma3(dtype: torch.dtype, max_length: int, vocab_size: int) -> CachedLM:
    """Two small Gemma3 layers, one with a window of 16 tokens and one without: 4 query heads on 2 KV heads of 64."""
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        **_sizes(vocab_size, max_length),
        head_dim=64,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * times(),
    )
    return _cached(config, dtype, max_length)


def export_cached(model: nn.Module, hint: int = 32) -> dict[str, ExportedProgram]:
    """The two methods of the program: ``prefill`` for any number of tokens from two on, ``decode`` for one.

    Args:
        model: a ``CachedLM`` in evaluation mode; its cache is emptied first, so that programs start from zeros.
        hint: length of the example prompt, which code generation takes as the typical one.
    """
    assert isinstance(model, CachedLM)
    model.reset()
    length = Dim("length", min=2, max=model.max_length)
    prompt = (torch.zeros(1, hint, dtype=torch.long), torch.arange(hint))
    one = (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    shapes = {"input_ids": {1: length}, "cache_position": {0: length}}
    # Strict: otherwise the caches, which the model reaches through an object that is no module, become constants.
    with torch.no_grad():
        return {
            "prefill": torch.export.export(model, prompt, dynamic_shapes=shapes, strict=True),
            "decode": torch.export.export(model, one, strict=True),
        }


def _sizes(vocab_size: int, max_length: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "num_hidden_layers": 2 * times(),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": max_length,
        "attn_implementation": "sdpa",
    }


def _cached(config: Any, dtype: torch.dtype, max_length: int) -> CachedLM:
    from transformers import AutoModelForCausalLM

    # Made in its dtype, not converted to it: the frequencies of the rotary positions stay in fp32.
    return CachedLM(AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), max_length)
