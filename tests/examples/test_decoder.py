from __future__ import annotations

import pytest
import torch

from examples.decoder.model import WEIGHTS, DecoderConfig, decode, encode, export_decoder, load_decoder
from examples.decoder.train import PROMPT, TEXT, greedy
from examples.models import CASES, Decoder, relative_error


def test_weights_are_small_enough_for_the_repository() -> None:
    assert WEIGHTS.stat().st_size < 2_000_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_continues_the_poem(dtype: torch.dtype) -> None:
    text = TEXT.read_text()
    start = text.index(PROMPT) + len(PROMPT)
    assert greedy(load_decoder(dtype), PROMPT, 200) == text[start : start + 200]


def test_tokens_are_bytes() -> None:
    assert encode("día") == [100, 195, 173, 97]
    assert decode(encode("día")) == "día"
    assert decode([255]) == "�"


def test_cache_and_training_path_agree() -> None:
    """Prefill in two pieces, then single tokens, against the path without a cache."""
    torch.manual_seed(1)
    model = Decoder(DecoderConfig(dim=64, num_layers=2, num_heads=4, hidden_dim=96, max_seq=32)).eval()
    tokens = torch.randint(0, 256, (1, 19))
    with torch.no_grad():
        expected = model.training_logits(tokens)[0]
        for start, stop in ((0, 7), (7, 16), (16, 17), (17, 18), (18, 19)):
            got = model(tokens[:, start:stop], torch.arange(start, stop))
            assert relative_error([got[0]], [expected[stop - 1]]) < 1e-5


def test_reset_empties_the_cache() -> None:
    model = CASES["decoder-fp32"].model()
    assert isinstance(model, Decoder)
    call = CASES["decoder-fp32"].session(torch.float32)[0]
    with torch.no_grad():
        model(*call.inputs)
    caches = [b for n, b in model.named_buffers() if n.endswith("_cache")]
    assert all(cache.any() for cache in caches)
    model.reset()
    assert not any(cache.any() for cache in caches)


def test_convert_keeps_the_rotary_tables_in_fp32() -> None:
    model = Decoder().convert(torch.bfloat16)
    assert model.embedding.weight.dtype == torch.bfloat16
    assert model.rope_cos.dtype == torch.float32


def test_both_methods_name_the_same_weights_and_cache() -> None:
    prefill, decode_ = (ep.run_decompositions({}) for ep in export_decoder(load_decoder()).values())
    cache = set(prefill.graph_signature.buffers_to_mutate.values())
    assert len(cache) == 2 * DecoderConfig().num_layers
    assert cache == set(decode_.graph_signature.buffers_to_mutate.values())
    assert list(prefill.state_dict) == list(decode_.state_dict)
