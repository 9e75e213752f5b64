"""The page of whole models says what was measured, and the models are ones that transformers builds."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from benchmarks.whole_models.report import limit_us, render
from benchmarks.whole_models.shapes import SHAPES

EXPORT = {
    "target": "sm_90",
    "cores": 2,
    "seconds": {"weights": 61.0, "trace": 20.2, "lower": 140.6, "write": 9.0},
    "weight_bytes": 5 * 10**9,
    "decode_weight_bytes": 4 * 10**9,
    "cache_bytes": 10**8,
    "peak": {"anonymous": 3 * 2**30, "total": 5 * 2**30, "proportional": 0},
}


def row(engine: str, graph: bool, decode: float, kernels: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "llama-3-8b-int4",
        "engine": engine,
        "cuda_graph": graph,
        "decode_us": {"512": decode, "4096": 2 * decode},
        "prompt_us": {"512": 12_800.0},
        "load_s": 2.5,
        "error": 0.1,
        "eager_error": 0.01,
        "kernels": kernels,
        "busy_us": 1500.0,
    }


def test_the_page(tmp_path: pathlib.Path) -> None:
    rows = [
        row("etcuda", True, 2000.0, {"matvec": [4.0, 100.0], "reduce": [1.0, 300.0]}),
        row("torch.compile bf16", True, 5000.0, {}) | {"prompt_us": {}},
    ]
    environment = {"gpu": "NVIDIA H200, 580.1, 1980 MHz", "torch": "2.14.1"}
    value = {"environment": environment, "rows": rows, "exports": {"llama-3-8b-int4": EXPORT}}
    (tmp_path / "r.json").write_text(json.dumps(value))
    render(tmp_path / "r.json", tmp_path, bandwidth=4e12)
    page = (tmp_path / "whole_models.md").read_text()
    # 4 GB over 4 TB/s are 1000 us, half of what a step took.
    assert "| llama-3-8b-int4 | etcuda | yes | 500 | 250 | 50% | 40,000 | 2.5 | 1.0e-01 (1.0e-02) |" in page
    assert "| llama-3-8b-int4 | torch.compile bf16 | yes | 200 | 100 |  |  | 2.5 | 1.0e-01 (1.0e-02) |" in page
    assert "| llama-3-8b-int4 | 2 | 61 | 20 | 141 | 9 | 5.0 (3.0) |" in page
    assert "GB/s" not in page.partition("\n## ")[0]
    # The most expensive kernel first.
    assert page.index("| `reduce` | 1 | 300.00 | 300 |") < page.index("| `matvec` | 4 | 25.00 | 100 |")
    assert (tmp_path / "whole_models.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_says_how_fast_weights_were_loaded_where_that_was_timed(tmp_path: pathlib.Path) -> None:
    rows = [
        row("etcuda", True, 2000.0, {}) | {"weights_s": 2.0, "weight_bytes": 5 * 10**9},
        row("torch.compile bf16", True, 5000.0, {}),
    ]
    value = {"environment": {"gpu": "NVIDIA H200, 580.1", "torch": "2.14.1"}, "rows": rows, "exports": {}}
    (tmp_path / "r.json").write_text(json.dumps(value))
    render(tmp_path / "r.json", tmp_path, bandwidth=4e12)
    page = (tmp_path / "whole_models.md").read_text()
    assert "| 40,000 | 2.00 (2.5) | 2.5 | 1.0e-01 (1.0e-02) |" in page
    assert "| 40,000 |  | 2.5 | 1.0e-01 (1.0e-02) |" in page


def test_the_limit_of_a_model_that_was_not_exported_here_is_not_known() -> None:
    assert limit_us(None, 4e12) == 0
    assert limit_us(EXPORT, 4e12) == 1000


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_builds_the_model(name: str, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("transformers")
    from etcuda.llm.export import configure
    from etcuda.llm.model import empty_model, find_layers
    from etcuda.llm.quantization import Plan

    shape = SHAPES[name]
    options = shape.options("host")
    config, _ = configure(shape.write(tmp_path), options)
    import torch

    model = empty_model(config, torch.bfloat16)
    layers = find_layers(model, options.max_seq_len, options.chunk)
    # Layers of a recurrent state have no cache of keys and values.
    kinds = shape.config.get("layer_types", ["full_attention"] * shape.config["num_hidden_layers"])
    assert len(layers) == len(kinds) - kinds.count("linear_attention")
    assert {layer.head_dim for layer in layers} == {
        shape.config[key] for key in ("head_dim", "global_head_dim") if key in shape.config
    }
    # Rules that match nothing are an error.
    assert len(Plan(model, options.quant).formats) >= (0 if shape.quant == "none" else 1)
