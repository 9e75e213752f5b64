"""Sessions over a decoder: conversations that take turns, cut off and go on, against processes of their own."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable

import pytest
import torch

from etcuda.runtime import Session
from examples.models import CASES, Call

from .conftest import run

runtime = pytest.importorskip("executorch.runtime")

CASE = "decoder-fp32"

# Runs the calls of a file in the stock state of a process.
ALONE = """
import sys
import torch
import etcuda.runtime
from executorch.runtime import Runtime
program = Runtime.get().load_program(sys.argv[1])
outputs = [program.load_method(name).execute(inputs)[0] for name, inputs in torch.load(sys.argv[2])]
torch.save(outputs, sys.argv[3])
"""


@pytest.fixture(scope="module")
def decoder(exported: Callable[[str, str], pathlib.Path]) -> pathlib.Path:
    return exported(CASE, "host")


def _others(calls: list[Call]) -> list[Call]:
    """The same calls with other tokens."""
    return [Call(call.method, (255 - call.inputs[0], call.inputs[1])) for call in calls]


def _alone(program: pathlib.Path, calls: list[Call], folder: pathlib.Path) -> list[torch.Tensor]:
    torch.save([(call.method, list(call.inputs)) for call in calls], folder / "calls")
    done = run(sys.executable, "-W", "ignore", "-c", ALONE, program, folder / "calls", folder / "outputs")
    assert done.returncode == 0, done.stderr
    outputs: list[torch.Tensor] = torch.load(folder / "outputs")
    return outputs


@pytest.mark.xdist_group("decoder-fp32")
def test_two_conversations_take_turns(decoder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    calls = CASES[CASE].session(torch.float32)
    conversations = [calls, _others(calls)]
    expected = [_alone(decoder, each, tmp_path) for each in conversations]
    program = runtime.Runtime.get().load_program(decoder)
    sessions = [Session(), Session()]
    for place in range(len(calls)):
        for which, session in enumerate(sessions):
            call = conversations[which][place]
            (got,) = session.execute(program.load_method(call.method), call.inputs)
            assert torch.equal(got, expected[which][place]), (place, which)
    assert not torch.equal(expected[0][-1], expected[1][-1])
    # The stock state has seen none of it.
    for call, want in zip(calls, expected[0], strict=True):
        assert torch.equal(program.load_method(call.method).execute(call.inputs)[0], want)


@pytest.mark.xdist_group("decoder-fp32")
def test_a_conversation_goes_on_from_its_start(decoder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    calls = CASES[CASE].session(torch.float32)
    prompt, tokens = calls[0], calls[1:4]
    instead = _others(tokens)
    expected = _alone(decoder, [prompt, *instead], tmp_path)[1:]
    program = runtime.Runtime.get().load_program(decoder)
    session = Session()
    for call in (prompt, *tokens):
        session.execute(program.load_method(call.method), call.inputs)
    names = [state.name for state in session.states()]
    assert names
    assert all(name.endswith("_cache") for name in names)
    length = prompt.inputs[0].shape[1]
    branches = [session.fork(length, {"*_cache": 2}), Session()]
    branches[1].restore(branches[0].to_bytes())
    for branch in branches:
        for call, want in zip(instead, expected, strict=True):
            assert torch.equal(branch.execute(program.load_method(call.method), call.inputs)[0], want)
