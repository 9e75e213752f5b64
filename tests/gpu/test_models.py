"""Every model of the registry and of the zoo on the local GPU.

The programs come from the folder in ETCUDA_PROGRAMS, made on any machine by ``scripts/models_table.py export``; without
it they are exported here. They run through examples/cpp/run_session, so that no release of torch matters.
"""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Callable

import pytest
import torch

from examples.bundle import Bundle, load_bundle, make_bundle
from examples.cpp.session import run_calls
from examples.models import CASES
from examples.running import gpu_arch
from examples.zoo.registry import ZOO_CASES

Export = Callable[[str, str], pathlib.Path]


@pytest.fixture
def program_and_bundle(name: str, request: pytest.FixtureRequest) -> tuple[pathlib.Path, Bundle]:
    arch = gpu_arch()
    assert arch is not None
    if folder := os.environ.get("ETCUDA_PROGRAMS"):
        return pathlib.Path(folder) / f"{name}-{arch}.pte", load_bundle(pathlib.Path(folder) / f"{name}.pt")
    exported: Export = request.getfixturevalue("exported")
    return exported(name, arch), make_bundle(name)


@pytest.mark.parametrize("name", [*CASES, *ZOO_CASES])
def test_matches_eager(name: str, program_and_bundle: tuple[pathlib.Path, Bundle], run_session: pathlib.Path) -> None:
    program, bundle = program_and_bundle
    verdict = bundle.verdict(run_calls(run_session, program, bundle.calls, like=bundle.eager))
    assert verdict.passed, verdict


def test_export_allocates_nothing_on_the_gpu(tmp_path: pathlib.Path) -> None:
    """Free memory, sampled all through an export, never falls below what it was. Wants the GPU to itself."""
    from examples.export import export_case

    arch = gpu_arch()
    assert arch is not None
    before = torch.cuda.mem_get_info()[0]
    samples: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            samples.append(torch.cuda.mem_get_info()[0])

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        export_case("mlp-bf16", arch, tmp_path / "mlp.pte")
    finally:
        done.set()
        sampler.join()
    assert len(samples) > 10
    assert min(samples) >= before
    assert torch.cuda.max_memory_allocated() == 0
