"""torch.compile on the same module in bf16, its CUDA graphs replayed."""

from __future__ import annotations

import contextlib
import pathlib
import statistics
import time
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.whole_models.eager import eager_model
from benchmarks.whole_models.measure import STEPS, Row, check, reference, script, tokens, worst
from benchmarks.whole_models.shapes import CONTEXTS, PROMPTS
from etcuda.llm import attention


class _Unset:
    """Stands for a context variable without a value, which torch.compile does not know how to trace."""

    def get(self) -> None:
        """Nothing."""

    def set(self, value: object) -> None:
        """Forgets it."""

    def reset(self, token: None) -> None:
        """There is nothing to reset."""


def traceable() -> contextlib.AbstractContextManager[Any]:
    """Inside, models over a ring read their mask, and torch.compile traces all models."""
    return mock.patch.multiple(attention, _calls=_Unset(), _seen=_Unset(), _coded=_Unset())


def measure_peer(name: str, folder: pathlib.Path, prompts: bool) -> Row:
    """``mode="reduce-overhead"`` for a step, the default mode for a prompt, where ``prompts``; wants a GPU.

    Raises:
        RuntimeError: its logits are not those of eager.
    """
    model = eager_model(name, folder, "cuda")
    begun = time.perf_counter()
    step = torch.compile(model, mode="reduce-overhead", fullgraph=True, dynamic=False)
    prompt = torch.compile(model, fullgraph=True, dynamic=False)

    def call(given: Tensor, at: Tensor, compiled: object = step) -> Tensor:
        result: Tensor = compiled(given.cuda(), at.cuda())  # type: ignore[operator]
        return result.float().cpu()

    with torch.no_grad(), traceable():
        expected, own = reference(name, folder, "cuda")
        compiled = {"prefill": prompt if prompts else model, "decode": step}
        got = [call(given, at, compiled[method]) for method, given, at in script(name)]
        load_s = time.perf_counter() - begun
        error = worst(got, expected)
        check(name, "torch.compile", error, own)
        decode = {}
        for context in CONTEXTS:
            calls = [(tokens(name, 1, seed), torch.tensor([context - 1])) for seed in range(STEPS)]
            for each in calls[:30]:
                call(*each)
            begun = time.perf_counter()
            for each in calls:
                call(*each)
            decode[context] = (time.perf_counter() - begun) / STEPS * 1e6
        prompt_us = {}
        for length in PROMPTS if prompts else ():
            samples = []
            for _ in range(10):
                begun = time.perf_counter()
                call(tokens(name, length), torch.arange(length), prompt)
                samples.append((time.perf_counter() - begun) * 1e6)
            prompt_us[length] = statistics.median(samples[3:])
    return Row(name, "torch.compile bf16", True, decode, prompt_us, load_s, error, own, {}, 0.0)
