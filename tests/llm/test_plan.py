"""Plans: against what loading makes, and what they say of limits."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable

import pytest

from etcuda.cli import main
from etcuda.errors import CheckpointError
from etcuda.llm.checkpoint import read_config
from etcuda.llm.export import ExportOptions, load_model
from etcuda.llm.plan import find_gpu, plan
from etcuda.llm.quantization import QuantOptions, decode_bytes, stored_bytes
from tests.llm.architectures import WINDOW

Checkpoint = Callable[[str], pathlib.Path]
_H200 = find_gpu("h200")


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("llama", QuantOptions("int4", (("lm_head", "int8"),))),
        ("qwen3", QuantOptions("int8")),
        ("qwen3", QuantOptions()),
        ("gemma4_text", QuantOptions("int4")),
    ],
)
def test_bytes_are_those_of_the_loaded_model(checkpoint: Checkpoint, name: str, quant: QuantOptions) -> None:
    folder = checkpoint(name)
    options = ExportOptions(dtype="bf16", max_seq_len=64, chunk=8, quant=quant)
    model, layers = load_model(folder, read_config(folder), options, lambda done, total: None)
    made = plan(folder, _H200, options)
    assert made.weight_bytes == sum(map(stored_bytes, model.parameters()))
    assert made.decode_weight_bytes == decode_bytes(model)
    assert made.cache_bytes == sum(each.nbytes(2) for each in layers)
    assert made.peak_bytes == made.weight_bytes + 2 * made.cache_bytes + made.activation_bytes
    assert made.fits


def test_limits(checkpoint: Checkpoint) -> None:
    made = plan(checkpoint("llama"), _H200, ExportOptions(dtype="bf16", max_seq_len=200))
    per_token = 2 * 2 * 2 * 16 * 2  # Layers, keys and values, heads, width, bytes.
    assert made.limits == {199: 4.8e12 / (made.decode_weight_bytes + 200 * per_token)}
    # A window is read, and not what lies before it.
    sliding = plan(checkpoint("mistral"), _H200, ExportOptions(dtype="bf16", max_seq_len=200, chunk=200))
    assert sliding.limits == {199: 4.8e12 / (sliding.decode_weight_bytes + WINDOW * per_token)}


def test_a_gpu_that_is_too_small(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    folder, options = checkpoint("llama"), ExportOptions(dtype="fp32", max_seq_len=256)
    whole = plan(folder, _H200, options)
    assert whole.fits_max_seq_len == 256
    without = dataclasses.replace(_H200, total_memory=whole.weight_bytes)
    small = plan(folder, without, options)
    assert not small.fits
    assert small.fits_max_seq_len == 0
    arguments = ["plan", str(folder), "--gpu", "sm_90", "--dtype", "fp32", "--max-seq-len", "256"]
    assert main([*arguments, "--memory-gib", str(whole.weight_bytes / 2**30)]) == 1
    assert "It does not fit: the weights alone are too large." in capsys.readouterr().out
    assert main(arguments) == 0
    assert "It fits, up to --max-seq-len 256." in capsys.readouterr().out


def test_json_and_options(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(checkpoint("llama")), "--gpu", "H200", "--quant", "int4", "--quant-rule", "lm_head=none"]
    assert main([*arguments, "--max-seq-len", "64", "--bandwidth-gbs", "1000", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["fits"] is True
    assert float(read["limits"]["63"]) < 1e12 / read["decode_weight_bytes"]
    assert main(["plan", str(checkpoint("llama")), "--gpu", "sm_90", "--quant-rule", "lm_head"]) == 2
    assert "--quant-rule: expected a name and a format, such as lm_head=int8, got 'lm_head'" in capsys.readouterr().err


def test_an_unknown_gpu() -> None:
    assert find_gpu("A100") is find_gpu("sm_80")
    with pytest.raises(CheckpointError, match=r"gpu: expected one of a100, .*h200, .*sm_90.*, got 'h2000'"):
        find_gpu("h2000")
