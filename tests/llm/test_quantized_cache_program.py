"""A program with a cache in 4 bits that verifies drafts: on the host."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
import torch

from etcuda import llm
from etcuda.llm import SamplingOptions
from etcuda.llm.draft import NgramDraft
from etcuda.llm.export import ExportOptions
from etcuda.llm.export import export as export_checkpoint
from tests.llm.architectures import greedy, prompt, reference
from tests.llm.conftest import CHUNK, MAX_SEQ_LEN
from tests.llm.test_model import run
from tests.llm.test_quantized_cache import coded_model

pytestmark = pytest.mark.slow


def test_a_program_with_coded_caches_and_drafts(
    tmp_path: pathlib.Path, checkpoint: Callable[[str], pathlib.Path]
) -> None:
    path = tmp_path / "m.pte"
    options = ExportOptions(
        target="host", dtype="fp32", max_seq_len=MAX_SEQ_LEN, chunk=CHUNK, cache="tq4", verify_rows=4
    )
    made = export_checkpoint(checkpoint("qwen3"), path, options)
    # Two layers, two heads of 32: 16 bytes of codes and 2 of scale a vector.
    layers = reference("qwen3").config.num_hidden_layers
    heads = reference("qwen3").config.num_key_value_heads
    assert made.cache_bytes == layers * heads * MAX_SEQ_LEN * 2 * 18
    eager, _ = coded_model("qwen3", "tq4")
    tokens, expected = prompt(20), list[int]()
    logits = run(eager, tokens, [8, 8, 4])
    while len(expected) < 30:
        expected.append(int(logits.argmax()))
        with torch.no_grad():
            logits = eager(torch.tensor([expected[-1:]]), torch.tensor([len(tokens) + len(expected) - 1]))
    model = llm.load(path)
    answer = model.generate(tokens, max_new_tokens=30, ignore_eos=True)
    answer.text()
    assert answer.tokens == expected
    assert expected != greedy(reference("qwen3"), tokens, 30), "4 bits change nothing"
    sampled = SamplingOptions(temperature=1.5, seed=2)
    for how in (SamplingOptions(), sampled):
        # A prompt that repeats itself has guesses.
        repeated = [*prompt(8), *prompt(8), *prompt(4)]
        plain = model.generate(repeated, how, max_new_tokens=30, ignore_eos=True)
        plain.text()
        drafted = model.generate(repeated, how, max_new_tokens=30, ignore_eos=True, drafter=NgramDraft())
        drafted.text()
        assert drafted.tokens == plain.tokens
        assert drafted.report.drafted_tokens > 0
