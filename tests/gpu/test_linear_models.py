"""Models with int4 weights on the local GPU, against PyTorch.

Programs come from ETCUDA_PROGRAMS, or are exported here, as in ``test_models.py``.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from etcuda import CompileOptions
from etcuda.backend.inspect import inspect_program
from examples.bundle import Bundle, load_bundle, make_bundle
from examples.cpp.session import run_calls
from examples.export import export_case
from examples.models import INT4_CASES
from examples.running import gpu_arch


@pytest.fixture
def program_and_bundle(name: str, tmp_path: pathlib.Path) -> tuple[pathlib.Path, Bundle]:
    arch = gpu_arch()
    assert arch is not None
    if folder := os.environ.get("ETCUDA_PROGRAMS"):
        return pathlib.Path(folder) / f"{name}-{arch}.pte", load_bundle(pathlib.Path(folder) / f"{name}.pt")
    path = tmp_path / "model.pte"
    export_case(name, arch, path, CompileOptions(progress=False))
    return path, make_bundle(name)


@pytest.mark.parametrize("name", sorted(INT4_CASES))
def test_matches_pytorch(name: str, program_and_bundle: tuple[pathlib.Path, Bundle], run_session: pathlib.Path) -> None:
    program, bundle = program_and_bundle
    kernels = {
        kernel
        for method in inspect_program(program).methods
        for delegate in method.delegates
        for image in delegate.images
        for kernel in image.kernels
    }
    assert {"matmul_kernel", "matmul_pdl"} & kernels
    outputs = run_calls(run_session, program, bundle.calls * 2, like=bundle.eager * 2)
    for part in (outputs[: len(bundle.calls)], outputs[len(bundle.calls) :]):
        verdict = bundle.verdict(part)
        assert verdict.passed, verdict
