"""Models of speech in ``transformers``, small and random."""

from __future__ import annotations

from torch import nn

from examples.zoo.base import Entry, Output, numbers, small, tokens

_SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _SIDE.items()}
    config = small(
        WhisperConfig,
        d_model=64,
        num_mel_bins=16,
        max_source_positions=40,
        max_target_positions=32,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        **sizes,
    )
    return Output(WhisperForConditionalGeneration(config), ("input_features", "decoder_input_ids"), "logits")


def wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    convs = {
        "conv_dim": (32, 32, 32),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
        "num_feat_extract_layers": 3,
    }
    config = small(Wav2Vec2Config, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **convs)
    return Output(Wav2Vec2ForCTC(config), ("input_values",), "logits")


ENTRIES = [
    Entry("whisper", "speech, encoder-decoder", whisper, lambda: (numbers(1, 16, 80), tokens(9))),
    Entry("wav2vec2", "speech, encoder", wav2vec2, lambda: (numbers(1, 1600),)),
]
