"""Shared experts that are experts of the mixture beside them: programs on the host say what transformers says."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import pytest

from etcuda import llm
from etcuda.llm.export import ExportOptions, export
from etcuda.llm.quantization import QuantOptions
from tests.llm.architectures import greedy, prompt, reference
from tests.llm.conftest import MAX_SEQ_LEN, train_tokenizer
from tests.llm.dequantised import dequantised, load_quantised

pytestmark = pytest.mark.slow
# More tokens than are few.
CHUNK = 40
# Mixtures of the model, and whether their shared expert can be one of them.
CASES: dict[str, tuple[str, dict[str, Any], str, int, bool]] = {
    "gated": ("qwen3_5_moe_text", {"shared_expert_intermediate_size": 96}, "none", 2, True),
    "gated, int4": ("qwen3_5_moe_text", {"shared_expert_intermediate_size": 96}, "int4", 2, True),
    "whole": ("deepseek_v3", {"n_shared_experts": 1}, "none", 1, True),
    "of another width": ("qwen3_5_moe_text", {}, "none", 2, False),
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_are_those_of_transformers(
    name: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    architecture, changes, quant, mixtures, joins = CASES[name]
    whole = reference(architecture, **changes)
    whole.save_pretrained(tmp_path)
    train_tokenizer(tmp_path)
    chosen = QuantOptions(quant, activation_dtype="exact")
    options = ExportOptions(target="host", dtype="fp32", max_seq_len=MAX_SEQ_LEN, chunk=CHUNK, quant=chosen)
    with caplog.at_level(logging.INFO, "etcuda.passes.experts.join_shared"):
        made = export(tmp_path, tmp_path / "m.pte", options)
    said = [record.getMessage() for record in caplog.records]
    # Once in each method: prefill keeps the products.
    assert sum("is one more expert" in each for each in said) == (mixtures if joins else 0)
    assert sum("weights are joined, products stay" in each for each in said) == (mixtures if joins else 0)
    assert sum("it has 32 rows, and those of the experts 96" in each for each in said) == (0 if joins else 4)
    # Weights are in the file once: the joined ones, and not what they are joined of.
    (weights,) = (each for each in made.files if each.suffix == ".ptd")
    assert weights.stat().st_size < 1.15 * made.weight_bytes
    if quant != "none":
        whole = dequantised(load_quantised(tmp_path, quant).model, whole)
    model = llm.load(tmp_path / "m.pte")
    for length in (1, CHUNK + 1):
        tokens = prompt(length, seed=length)
        expected = greedy(whole, tokens, 16)
        answer = model.generate(tokens, max_new_tokens=16, ignore_eos=True)
        answer.text()
        assert answer.tokens == expected
        assert len(set(expected)) > 3
