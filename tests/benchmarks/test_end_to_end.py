"""Whole models in the attention benchmark: the programs differ in attention alone, and the page adds up."""

from __future__ import annotations

import json
import pathlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.attention import end_to_end, end_to_end_report
from benchmarks.attention import end_to_end_run as measuring
from benchmarks.attention.end_to_end import CALLS, MODELS, VARIANTS, VOCAB

aten = torch.ops.aten


@pytest.mark.slow
def test_the_variants_differ_in_attention_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "MAX_LENGTH", 64)
    monkeypatch.setattr(end_to_end, "PROMPT", 16)
    for name in ("decoder", "gemma3"):
        model = MODELS[name]().eval().requires_grad_(False)
        targets: dict[str, list[str]] = {}
        for variant in ("kernels", "none"):
            program = end_to_end._methods(model, variant)["decode"]
            targets[variant] = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        attention = str(aten.scaled_dot_product_attention.default)
        assert targets["kernels"].count(attention) == 2
        assert attention not in targets["none"]
        linear = str(aten.linear.default)
        assert targets["kernels"].count(linear) == targets["none"].count(linear) > 10


def test_calls_stay_within_the_cache() -> None:
    for call in CALLS:
        tokens, positions = call.inputs
        assert tokens.shape == (1, call.length)
        assert int(tokens.max()) < VOCAB
        assert positions.tolist() == list(range(call.filled, call.filled + call.length))
        assert call.filled + call.length <= end_to_end.MAX_LENGTH


def event(name: str, begin: float, us: float, device: Any = torch.autograd.DeviceType.CUDA) -> Any:
    return SimpleNamespace(
        name=lambda: name, device_type=lambda: device, start_ns=lambda: begin * 1e3, duration_ns=lambda: us * 1e3
    )


def profiler(*events: Any) -> Any:
    results = SimpleNamespace(events=lambda: list(events))
    return SimpleNamespace(profiler=SimpleNamespace(kineto_results=results))


def test_kernels_of_a_profile() -> None:
    on_cpu = event("x", 0, 7, torch.autograd.DeviceType.CPU)
    seen = profiler(event("b", 12, 5), event("b", 1, 3), event("a", 3, 2), event("Memcpy HtoD", 0, 9), on_cpu)
    found = measuring.events_of(seen)
    assert measuring.by_name(found, 2) == {"a": (0.5, 1.0), "b": (1.0, 4.0)}
    # From 1 to 5, of which 3 to 4 twice, and from 12 to 17.
    assert measuring.busy_us(found) == 9
    inside = measuring.events_of(profiler(event("a", 0, 10), event("b", 2, 3)))
    assert measuring.busy_us(inside) == 10
    with pytest.raises(RuntimeError, match="saw no kernel"):
        measuring.events_of(profiler(event("Memset", 0, 1)))


def rows(name: str) -> list[dict[str, Any]]:
    times = {"formula": 100.0, "kernels": 30.0, "none": 20.0}
    ours = {"attention_split_kernel": [1, 4.0], "attention_reduce_pdl": [1, 2.0], "other": [2, 24.0]}
    kernels: dict[str, Any] = {"formula": {}, "kernels": ours, "none": {}}
    return [
        {
            "model": name, "variant": variant, "method": call.method, "filled": call.filled, "length": call.length,
            "host_us": times[variant] + 50, "gpu_us": times[variant],
            "attention_us": 6.0 if variant == "kernels" else 0.0, "kernels": kernels[variant],
            "error": 1e-3 if variant == "kernels" else None,
        }
        for variant in VARIANTS
        for call in CALLS
    ]  # fmt: skip


def test_the_page(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "attention_end_to_end.json"
    source.write_text(json.dumps({"gpu": "made up", "torch": "2", "rows": rows("llama") + rows("qwen3")}))
    end_to_end_report.render(source, tmp_path)
    page = (tmp_path / "attention_end_to_end.md").read_text()
    assert "on one made up" in page
    line = "| decode 1 after 512 | 150 | 80 | 100.0 | 30.0 | 80.0 | 10.0 (6.0) | 8.0x | 1.0e-03 |"
    assert f"| llama {line}" in page
    assert page.count("| qwen3 |") == len(CALLS)
    with pytest.raises(KeyError):
        end_to_end_report.triples(rows("llama")[:-1])


def test_a_model_whose_outputs_differ_has_no_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    def measure(name: str, *_: Any) -> list[measuring.Row]:
        error = 0.5 if name == "bad" else 1e-3
        return [measuring.Row(name, "kernels", "decode", 1, 1, 1.0, 1.0, 1.0, {}, error)]

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "made up")
    out = tmp_path / "results.json"
    assert measuring.run(["good", "bad"], tmp_path, tmp_path, out) == 1
    assert [row["model"] for row in json.loads(out.read_text())["rows"]] == ["good"]
