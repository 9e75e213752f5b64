"""Models whose programs hold the attention kernels, on the local GPU, against PyTorch.

Programs come from ETCUDA_PROGRAMS, or are exported here, as in ``test_models.py``.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from etcuda import CompileOptions
from examples.bundle import Bundle, load_bundle, make_bundle
from examples.cpp.session import run_calls
from examples.export import attention_kernels, export_case
from examples.running import gpu_arch

NAMES = ["decoder-bf16", "llama-bf16", "qwen3-bf16", "gemma3-bf16"]


@pytest.fixture
def program_and_bundle(name: str, tmp_path: pathlib.Path) -> tuple[pathlib.Path, Bundle]:
    arch = gpu_arch()
    assert arch is not None
    if folder := os.environ.get("ETCUDA_PROGRAMS"):
        return pathlib.Path(folder) / f"{name}-{arch}.pte", load_bundle(pathlib.Path(folder) / f"{name}.pt")
    path = tmp_path / "model.pte"
    export_case(name, arch, path, CompileOptions(attention_kernels=True, progress=False))
    return path, make_bundle(name)


@pytest.mark.parametrize("name", NAMES)
def test_matches_eager(name: str, program_and_bundle: tuple[pathlib.Path, Bundle], run_session: pathlib.Path) -> None:
    program, bundle = program_and_bundle
    assert attention_kernels(program) == ("split", "tiled"), "export it with attention_kernels=True"
    assert {call.inputs[0].shape[1] for call in bundle.calls} & set(range(17, 65)), "no call reaches the tiled kernel"
    verdict = bundle.verdict(run_calls(run_session, program, bundle.calls, like=bundle.eager))
    assert verdict.passed, verdict


@pytest.mark.parametrize("name", NAMES)
def test_a_second_session_in_one_process_computes_the_same(
    name: str, program_and_bundle: tuple[pathlib.Path, Bundle], run_session: pathlib.Path
) -> None:
    """Positions say what is valid: what an earlier session left in the cache does not matter."""
    program, bundle = program_and_bundle
    count = len(bundle.calls)
    outputs = run_calls(run_session, program, bundle.calls * 2, like=bundle.eager * 2)
    assert bundle.verdict(outputs[count:]).passed
