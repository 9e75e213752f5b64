"""Language models on the local GPU: logits of prefill and decode against transformers', past the window's wrap, and
sampling on the device. Programs run without PyTorch, so that no release of torch matters."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess

import pytest
import torch

pytest.importorskip("transformers", minversion="5.24", reason="expected transformers 5.24 or newer")

from etcuda.library import LLM_RUNNER_NAME, find_runner
from etcuda.llm.checkpoint import read_config
from etcuda.llm.export import ExportOptions, export, load_model
from etcuda.llm.model import TextModel
from etcuda.options import CompileOptions
from examples.cpp.session import run_calls
from examples.models import Call, relative_error
from examples.running import gpu_arch
from tests.llm.architectures import EXPERTS, prompt, save

_TOLERANCE = 2e-2
# Chunks and tokens one by one, past the wrap of a ring of 8 + 16 - 1.
_SIZES = (16, 16, 1, 1, 5, 1, 9, 1)


def calls(tokens: list[int]) -> list[Call]:
    made, start = [], 0
    for size in _SIZES:
        some = torch.tensor([tokens[start : start + size]])
        made.append(Call("decode" if size == 1 else "prefill", (some, torch.arange(start, start + size))))
        start += size
    return made


def eager(folder: pathlib.Path, options: ExportOptions, made: list[Call]) -> list[torch.Tensor]:
    model, layers = load_model(folder, read_config(folder), options, lambda done, total: None)
    if options.dtype == "fp32":
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    text_model = TextModel(model, layers).eval()
    with torch.no_grad():
        return [text_model(*call.inputs) for call in made]


MODELS = ("llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gemma4_text", "gpt2", *EXPERTS)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model(name: str, tmp_path: pathlib.Path, run_session: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    save(name, tmp_path / "checkpoint")
    options = ExportOptions(
        target=arch, dtype="bf16", max_seq_len=64, chunk=16, compile=CompileOptions(weights="pte", progress=False)
    )
    export(tmp_path / "checkpoint", tmp_path / "m.pte", options)
    made = calls(prompt(sum(_SIZES)))
    rounded = eager(tmp_path / "checkpoint", options, made)
    exact = eager(tmp_path / "checkpoint", dataclasses.replace(options, dtype="fp32"), made)
    got = run_calls(run_session, tmp_path / "m.pte", made, like=rounded)
    error, own = relative_error([each.float() for each in got], exact), relative_error(rounded, exact)
    print(f"{name}: {error:.2e} from fp32, PyTorch in bf16 {own:.2e}")
    assert error < max(_TOLERANCE, 1.5 * own)


def test_sampling_on_the_device(tmp_path: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    save("gemma3_text", tmp_path / "checkpoint")
    options = ExportOptions(target=arch, dtype="bf16", max_seq_len=64, chunk=16, device_sampling=True)
    export(tmp_path / "checkpoint", tmp_path / "m.pte", options)
    command = [str(find_runner(LLM_RUNNER_NAME)), "--model_path", str(tmp_path / "m.pte")]
    command += ["--data_path", str(tmp_path / "m.ptd"), "--ids", ",".join(map(str, prompt(20))), "--ignore_eos"]

    def answer(*more: str) -> list[int]:
        done = subprocess.run([*command, "--max_new_tokens=24", *more], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stderr.splitlines()[-1])["generated_tokens"] == 24
        return [int(each) for each in done.stdout.split()]

    assert answer() == answer("--temperature=2", "--top_k=1")
    # A penalty that is next to 1 changes nothing that is not nearly equal, a great one leaves no token twice.
    assert answer()[:4] == answer("--repetition_penalty=1.0000001")[:4]
    assert len(set(answer("--repetition_penalty=1000"))) > 20
    warm = ("--temperature=1.5", "--top_p=0.9", "--seed=5")
    assert answer(*warm) == answer(*warm)
    assert answer(*warm) != answer(*warm[:2], "--seed=6")
