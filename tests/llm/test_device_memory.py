"""What is said where a GPU has no room for a model, in Python and in C++."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import etcuda.runtime
from etcuda import llm
from etcuda.errors import GenerationError
from etcuda.llm.device_memory import device_memory_problem
from etcuda.llm.program import TextProgram
from tests.conftest import ROOT
from tests.llm.conftest import Exported

GIB = 1 << 30
# Weights, caches, tokens, free and all memory.
CASES = [
    (5 * GIB, 2 * GIB, 4096, 9 * GIB, 80 * GIB),
    (5 * GIB, 2 * GIB, 4096, 9 * GIB - 1, 80 * GIB),
    (5 * GIB, 2 * GIB, 4096, 7 * GIB, 80 * GIB),
    (5 * GIB, 2 * GIB, 4096, 5 * GIB, 8 * GIB),
    (5 * GIB, 0, 4096, 3 * GIB, 8 * GIB),
    (0, 0, 0, 0, 0),
]


def test_how_many_tokens_would_fit() -> None:
    assert device_memory_problem(*CASES[0]) is None
    assert device_memory_problem(*CASES[2]) == (
        "expected 9.00 GiB free on the GPU, for weights of 5.00 GiB and caches of 4.00 GiB for 4096 tokens, in the "
        "program and in a session, got 7.00 of 80.00 GiB. Export with --max-seq-len 2048 or less, or free its memory."
    )
    for case in CASES[3:5]:
        problem = device_memory_problem(*case)
        assert problem is not None
        assert problem.endswith("Quantise the weights to fewer bits, or take a GPU with more memory.")
    assert device_memory_problem(*CASES[5]) is None


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_cpp_says_the_same(tmp_path: pathlib.Path) -> None:
    calls = "".join(
        f"  std::puts(etcuda::device_memory_problem({{{weights}u, {caches}u, {tokens}}}, {free}u, {total}u).c_str());\n"
        for weights, caches, tokens, free, total in CASES
    )
    source = tmp_path / "main.cpp"
    source.write_text(
        f"""
#include <etcuda/llm/device_memory.h>
static uint64_t used = 0;
static int failed = 0;
extern "C" int etcuda_device_memory(uint64_t* free, uint64_t* total, uint64_t* in_use) {{
  *free = 1; *total = 2; *in_use = used;
  return failed;
}}
int main() {{
{calls}
  const etcuda::DeviceMemoryNeed need = {{9, 9, 9}};
  std::puts(etcuda::device_memory_problem(need).empty() ? "" : "refused");
  used = 1;
  std::puts(etcuda::device_memory_problem(need).c_str());
  used = 0, failed = -1;
  std::puts(etcuda::device_memory_problem(need).c_str());
}}
"""
    )
    made = tmp_path / "main"
    include = ROOT / "runtime" / "include"
    subprocess.run(["c++", "-std=c++17", "-Wall", "-Werror", f"-I{include}", source, "-o", made], check=True)
    lines = subprocess.run([made], capture_output=True, text=True, check=True).stdout.split("\n")
    assert lines[: len(CASES)] == [device_memory_problem(*case) or "" for case in CASES]
    assert lines[len(CASES) :] == ["refused", "", "", ""]


@pytest.mark.slow
def test_a_program_is_refused_before_it_is_loaded(
    program: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = TextProgram._constant

    def on_a_gpu(self: TextProgram, name: str, default: list[Any] | None = None) -> list[Any]:
        return [1] if name == "get_gpu_count" else constant(self, name, default)

    # Of 545.2 KiB of weights, and a KiB a token.
    memory = [600 << 10, 1 << 20, 0]
    monkeypatch.setattr(TextProgram, "_constant", on_a_gpu)
    monkeypatch.setattr(etcuda.runtime, "gpu_available", lambda: True)
    monkeypatch.setattr(etcuda.runtime, "device_memory", lambda: tuple(memory))
    path = program("llama").path
    with pytest.raises(GenerationError, match=r"m.*\.pte: expected .* for 64 tokens, .* --max-seq-len 54 or less"):
        llm.load(path)
    # Other programs are there already, which may have its weights.
    memory[2] = 1
    assert llm.load(path).generate([3, 4], max_new_tokens=2, ignore_eos=True).text() is not None


@pytest.mark.skipif(etcuda.runtime.gpu_available(), reason="a GPU is there")
def test_no_gpu_has_no_memory() -> None:
    with pytest.raises(RuntimeError, match="device_memory failed: its memory needs an NVIDIA GPU"):
        etcuda.runtime.device_memory()
