"""Shared by every test: import paths, the GPU marker, and programs exported once per session."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Last, so that an installed etcuda stands before the checkout's; examples and the rest come from the checkout.
sys.path.append(str(ROOT))

pytest_plugins = ["tests.export_costs", "tests.file_costs"]

EXHAUSTIVE = "ETCUDA_TEST_EXHAUSTIVE"
NO_GPU = "no NVIDIA GPU here"
Export = Callable[[str, str], pathlib.Path]


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def runs_everything() -> bool:
    """Whether tests with the mark ``exhaustive`` run."""
    return bool(os.environ.get(EXHAUSTIVE)) or has_gpu()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run the tests that tests/exhaustive.py leaves out too")


def pytest_configure(config: pytest.Config) -> None:
    import torch
    import triton

    from tests import memoized_torch

    if config.getoption("exhaustive"):
        # For tests that run pytest in another process.
        os.environ[EXHAUSTIVE] = "1"

    # Deprecations that our dependencies raise about one another.
    for module in ("executorch", "torch", "importlib", "copyreg"):
        for category in ("DeprecationWarning", "FutureWarning"):
            config.addinivalue_line("filterwarnings", f"ignore::{category}:{module}.*")

    # The order is that of pytest_collection_modifyitems, and not by the number of tests in a group.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    memoized_torch.install()
    if triton.knobs.runtime.interpret:
        from tests import memoized_triton

        memoized_triton.install()
    torch.set_num_threads(1)
    # Thousands of lines of the tracer's own would bury the log of a failed test.
    logging.getLogger("torch.__trace").propagate = False


def pytest_report_header() -> str:
    import etcuda

    where = pathlib.Path(etcuda.__file__).parent
    return f"etcuda: {where}; " + ("GPU found" if has_gpu() else f"{NO_GPU}, tests/gpu skip")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    folder = ROOT / "tests" / "gpu"
    for item in items:
        if item.path.is_relative_to(folder):
            item.add_marker(pytest.mark.gpu)
    if not runs_everything():
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    # Slow ones first: workers take them one by one, and none is left with a long one while the others have ended.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    # The rest of a file stays together: two workers would make its fixtures twice, and what its functions remember.
    for item in items if getattr(config.option, "loadgroup", False) else ():
        if not any(item.get_closest_marker(name) for name in ("slow", "xdist_group")):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_collection_finish() -> None:
    # Graphs are millions of objects that live for long and do not refer to themselves: looking through them again and
    # again was a tenth of the processor time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    import numpy as np
    import torch

    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip(NO_GPU)
    # The same numbers whatever ran before in this process, so that a bound holds always or never.
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of compiling itself: nothing is taken from, or kept for, other exports of this process."""
    from etcuda.backend.worker import client

    monkeypatch.setattr(client, "job_key", lambda _folder: None)


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder that all workers of one test run see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock file next to ``path``."""
    from filelock import FileLock

    with FileLock(str(path) + ".lock"):
        yield


@pytest.fixture(scope="session")
def exported(shared_dir: pathlib.Path) -> Export:
    """``exported(case, target)`` is the ``.pte`` of a registry case; each is exported once per test run."""

    def export(case: str, target: str) -> pathlib.Path:
        from examples.export import export_case

        path = shared_dir / f"{case}-{target}.pte"
        with locked(path):
            if not path.exists():
                export_case(case, target, path)
        return path

    return export


@pytest.fixture(scope="session")
def cpp_examples(shared_dir: pathlib.Path) -> pathlib.Path:
    """The folder with the built programs of examples/cpp; each test run builds them once."""
    if folder := os.environ.get("ETCUDA_CPP_EXAMPLES"):
        return pathlib.Path(folder)
    build = shared_dir / "cpp"
    beside = pathlib.Path(sys.executable).parent / "cmake"
    cmake = str(beside) if beside.is_file() else "cmake"
    with locked(build):
        if not (build / "run_session").exists():
            source, python = str(ROOT / "examples" / "cpp"), f"-DPython3_EXECUTABLE={sys.executable}"
            configure = [cmake, "-S", source, "-B", str(build), python]
            for command in (configure, [cmake, "--build", str(build)]):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return build


@pytest.fixture(scope="session")
def run_session(cpp_examples: pathlib.Path) -> pathlib.Path:
    """The program that runs several calls of one loaded program."""
    return cpp_examples / "run_session"
