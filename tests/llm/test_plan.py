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
from etcuda.llm.extra import readable
from etcuda.llm.gguf_checkpoint import read_gguf_config
from etcuda.llm.model import TextModel
from etcuda.llm.plan import find_gpu, plan
from etcuda.llm.quantization import QuantOptions, decode_bytes, stored_bytes
from tests.llm import test_gguf
from tests.llm.architectures import WINDOW, reference

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
    ring = plan(checkpoint("mistral"), _H200, ExportOptions(dtype="bf16", max_seq_len=200, chunk=100))
    assert ring.cache_bytes < sliding.cache_bytes
    assert ring.limits == sliding.limits


def test_states_that_are_kept(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    folder, options = checkpoint("qwen3_next"), ExportOptions(dtype="bf16", max_seq_len=64, chunk=8)
    alone = plan(folder, _H200, options)
    made = plan(folder, _H200, dataclasses.replace(options, verify_rows=4, rollback=2))
    # Of one layer: heads, a key's width, a value's width, bytes; and inputs of its convolution.
    state = 4 * 16 * 24 * 4 + (2 * 2 * 16 + 4 * 24) * 2
    assert (alone.checkpoint_bytes, made.checkpoint_bytes) == (0, 3 * state)
    assert made.cache_bytes == alone.cache_bytes + 3 * state
    assert made.limits == alone.limits, "a token reads and writes one state"
    model, layers = load_model(folder, read_config(folder), options, lambda done, total: None)
    held = TextModel(model, layers, slots=4).cache.buffers()
    assert made.cache_bytes == sum(buffer.nbytes for buffer in held)
    arguments = ["plan", str(folder), "--gpu=h200", "--dtype=bf16", "--max-seq-len=64", "--rollback=3"]
    assert main(arguments) == 0
    assert f"of these     {readable(3 * state)} are recurrent states" in capsys.readouterr().out
    assert main([*arguments, "--rollback=16"]) == 2
    assert "rollback: expected 0 to 15 tokens, got 16" in capsys.readouterr().err


def test_a_gpu_that_is_too_small(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    folder, options = checkpoint("llama"), ExportOptions(dtype="fp32", max_seq_len=256)
    whole = plan(folder, _H200, options)
    assert whole.fits_max_seq_len == 256
    exact = dataclasses.replace(_H200, total_memory=whole.peak_bytes + whole.driver_bytes)
    assert plan(folder, exact, options).fits
    assert not plan(folder, dataclasses.replace(exact, total_memory=exact.total_memory - 1), options).fits
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


def test_a_gguf_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    test_gguf.write(path, "qwen3", reference("qwen3"))
    options = ExportOptions(dtype="bf16", max_seq_len=64, chunk=8)
    model, layers = load_model(path, read_gguf_config(path), options, lambda done, total: None)
    made = plan(path, _H200, options)
    assert made.weight_bytes == sum(map(stored_bytes, model.parameters()))
    assert made.decode_weight_bytes == decode_bytes(model)
    assert made.cache_bytes == sum(each.nbytes(2) for each in layers)
    with pytest.raises(CheckpointError, match=r"expected no quant for a GGUF file"):
        plan(path, _H200, ExportOptions(max_seq_len=64, quant=QuantOptions("int8")))


def test_lengths_are_those_of_an_export(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(checkpoint("llama")), "--gpu", "h200"]
    assert main(arguments) == 0
    assert "for 256 tokens, for the program and for each session" in capsys.readouterr().out
    assert main([*arguments, "--max-seq-len", "257"]) == 2
    assert "max_seq_len: expected at most the 256 positions of the model, got 257." in capsys.readouterr().err


def test_an_unknown_gpu() -> None:
    assert find_gpu("A100") is find_gpu("sm_80") is find_gpu("NVIDIA A100")
    with pytest.raises(CheckpointError, match=r"gpu: expected one of a100, .*h200, .*sm_90.*, got 'h2000'"):
        find_gpu("h2000")
