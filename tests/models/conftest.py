"""How the model tests run a program: in the stock Python runtime, or in a C++ program where that cannot run."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
import torch

Run = Callable[[pathlib.Path, str], list[torch.Tensor]]


@pytest.fixture(scope="session")
def run_case(request: pytest.FixtureRequest) -> Run:
    """``run_case(path, name)``: outputs of a registry case's session.

    ExecuTorch's Python binding is built for one torch release and cannot execute with an older one; its C++ runtime
    has no such tie, so with an older torch the session goes through examples/cpp/run_session.
    """
    from examples.models import find_case

    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release >= (2, 14):

        def run(path: pathlib.Path, name: str) -> list[torch.Tensor]:
            from examples.running import Session

            case = find_case(name)
            return Session(path).run(case.session(case.dtype))

        return run

    run_session: pathlib.Path = request.getfixturevalue("run_session")

    def run_native(path: pathlib.Path, name: str) -> list[torch.Tensor]:
        from examples.cpp.session import run_calls
        from examples.models import run_eager

        case = find_case(name)
        calls = case.session(case.dtype)
        return run_calls(run_session, path, calls, like=run_eager(case.model(), calls))

    return run_native
