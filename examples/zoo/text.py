"""Language models of ``transformers``, small and random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from examples.zoo.base import Entry, Output, small, tokens

BOTH = (torch.float32, torch.bfloat16)


def encoder(model: str, **changes: Any) -> nn.Module:
    """An encoder without a pooling layer where it would have one."""
    import transformers

    kind = getattr(transformers, f"{model}Model")
    config = small(getattr(transformers, f"{model}Config"), **changes)
    return Output(kind(config), ("input_ids",), "last_hidden_state")


def decoder(model: str, head: str = "ForCausalLM", **changes: Any) -> nn.Module:
    """A decoder that returns logits, without a cache."""
    import transformers

    config = small(getattr(transformers, f"{model}Config"), **{"use_cache": False, **changes})
    return Output(getattr(transformers, model + head)(config), ("input_ids",), "logits")


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = small(T5Config, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, use_cache=False)
    return Output(T5ForConditionalGeneration(config), ("input_ids", "decoder_input_ids"), "logits")


def bart() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _SIDE.items()}
    config = small(BartConfig, d_model=64, max_position_embeddings=64, use_cache=False, **sizes)
    return Output(BartForConditionalGeneration(config), ("input_ids", "decoder_input_ids"), "logits")


_SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
_EXPERTS: dict[str, Any] = {"num_key_value_heads": 2, "num_experts_per_tok": 2}


def one() -> tuple[Tensor, ...]:
    return (tokens(),)


def two() -> tuple[Tensor, ...]:
    return tokens(), tokens(9, seed=1)


ENTRIES = [
    Entry("distilbert", "encoder", lambda: encoder("DistilBert", dim=64, n_layers=2, n_heads=4, hidden_dim=128), one),
    Entry("roberta", "encoder", lambda: encoder("Roberta", max_position_embeddings=64), one, BOTH),
    Entry("albert", "encoder", lambda: encoder("Albert", embedding_size=32), one),
    Entry(
        "deberta-v2", "encoder", lambda: encoder("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"]), one
    ),
    Entry(
        "modernbert",
        "encoder",
        lambda: encoder("ModernBert", global_attn_every_n_layers=2, local_attention=16),
        one,
        BOTH,
    ),
    Entry("gpt2", "decoder", lambda: decoder("GPT2", "LMHeadModel", n_embd=64, n_layer=2, n_head=4), one, BOTH),
    Entry("opt", "decoder", lambda: decoder("OPT", ffn_dim=128, word_embed_proj_dim=64), one),
    Entry("gpt-neox", "decoder", lambda: decoder("GPTNeoX"), one),
    Entry("bloom", "decoder", lambda: decoder("Bloom", n_layer=2, n_head=4), one),
    Entry("falcon", "decoder", lambda: decoder("Falcon", new_decoder_architecture=False), one),
    Entry("mistral", "decoder", lambda: decoder("Mistral", num_key_value_heads=2, sliding_window=16), one, BOTH),
    Entry("phi3", "decoder", lambda: decoder("Phi3", num_key_value_heads=2), one),
    Entry(
        "gemma2", "decoder", lambda: decoder("Gemma2", num_key_value_heads=2, head_dim=16, sliding_window=16), one, BOTH
    ),
    Entry("t5", "encoder-decoder", t5, two, BOTH),
    Entry("bart", "encoder-decoder", bart, two),
    Entry("mixtral", "MoE decoder", lambda: decoder("Mixtral", num_local_experts=4, **_EXPERTS), one, BOTH),
    Entry(
        "qwen3-moe",
        "MoE decoder",
        lambda: decoder("Qwen3Moe", num_experts=4, moe_intermediate_size=32, **_EXPERTS),
        one,
        BOTH,
    ),
    Entry("olmoe", "MoE decoder", lambda: decoder("Olmoe", num_experts=4, **_EXPERTS), one),
    Entry("mamba", "state space", lambda: decoder("Mamba", state_size=8), one),
    Entry(
        "mamba2",
        "state space",
        lambda: decoder("Mamba2", state_size=16, num_heads=8, head_dim=16, n_groups=2, chunk_size=16),
        one,
    ),
]
