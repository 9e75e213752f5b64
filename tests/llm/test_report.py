"""Figures of a generation."""

from __future__ import annotations

import json

from etcuda.llm.report import Report


def test_rates_and_text() -> None:
    report = Report(
        load_seconds=1.5,
        prompt_tokens=100,
        reused_tokens=60,
        prefill_seconds=0.5,
        generated_tokens=11,
        decode_seconds=2.0,
        finish_reason="stop",
        limit=50.0,
        peak_bytes=3 << 20,
    )
    assert (report.prompt_rate, report.decode_rate) == (80.0, 5.0)
    said = str(report)
    assert "prompt 100 tokens (60 of them reused), 80.0 tok/s, first token after 500.0 ms" in said
    assert "answer 11 tokens, 5.0 tok/s (10.0% of the bandwidth's limit), ended by stop; peak memory 3.0 MiB" in said
    read = json.loads(report.to_json())
    assert (read["decode_rate"], read["limit"], read["finish_reason"]) == (5.0, 50.0, "stop")


def test_nothing_took_no_time() -> None:
    report = Report(prompt_tokens=3, generated_tokens=1)
    assert (report.prompt_rate, report.decode_rate) == (0.0, 0.0)
    assert "%" not in str(report)
