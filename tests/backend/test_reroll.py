"""A graph that repeats: its parts, called in order, are the whole."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from etcuda import CompileOptions, CudaPartitioner
from etcuda.backend.inspect import DelegateInfo, inspect_program
from etcuda.backend.reroll import DROPPED, Parts, mark_edges, split_repeats
from etcuda.passes.repeats import find as repeats
from examples.decoder.model import Decoder, DecoderConfig, export_decoder
from tests.passes.made_weights import made
from tests.passes.repeats.repeated_models import MODELS, Cached, Layer, Stack, program_of


@pytest.fixture
def small_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats count however little they save."""
    monkeypatch.setattr(repeats, "MIN_SAVED_CALLS", 4)


class Called:
    """A program in parts, run call after call as the runtime runs it."""

    def __init__(self, program: ExportedProgram, parts: Parts) -> None:
        signature = program.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        named |= signature.inputs_to_lifted_tensor_constants
        nodes: dict[str, Node] = {node.name: node for node in program.graph.nodes}
        self.inputs = [str(name) for name in signature.user_inputs]
        self.state = {name: self._value(program, fqn).detach().clone() for name, fqn in named.items()}
        order = [*self.inputs, *named]
        numbers = {nodes[name]: index for index, name in enumerate(order)}
        self.steps, self.results = parts.numbered(numbers, len(order))
        self.modules = [part.module(check_guards=False) for part in parts.programs]

    @staticmethod
    def _value(program: ExportedProgram, fqn: str) -> Tensor:
        found: Any = program.state_dict.get(fqn, program.constants.get(fqn))
        return made(found)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        values = [*inputs, *self.state.values()]
        for part, reads, makes in self.steps:
            results = self.modules[part](*(values[number] for number in reads))
            for number, value in zip(makes, results, strict=True):
                if number != DROPPED:
                    assert number == len(values)
                    values.append(value)
        return [values[number] for number in self.results]


@pytest.mark.usefixtures("small_repeats")
@pytest.mark.parametrize("name", MODELS)
def test_parts_in_order_are_the_whole(name: str) -> None:
    program = MODELS[name]()
    parts = split_repeats(program)
    assert parts is not None
    assert len(parts.programs) < len(parts.steps)
    whole, called = copy.deepcopy(program).module(check_guards=False), Called(program, parts)
    for call in range(3):
        inputs: tuple[Tensor, ...] = (torch.randn(2 if name == "state" else 5 + (name == "dynamic") * call, 4),)
        if name == "state":
            inputs += (torch.tensor([call, 5 - call]),)
        with torch.no_grad():
            got, expected = called(*inputs), whole(*inputs)
        assert torch.equal(got[0], expected), call


@pytest.mark.usefixtures("small_repeats")
@pytest.mark.parametrize("name", MODELS)
def test_edges_change_nothing(name: str) -> None:
    program = MODELS[name]()
    whole = copy.deepcopy(program).module(check_guards=False)
    assert mark_edges(program) > 0
    program.graph.lint()
    inputs = (torch.randn(2 if name == "state" else 5, 4), *([torch.tensor([0, 5])] * (name == "state")))
    with torch.no_grad():
        assert torch.equal(program.module(check_guards=False)(*inputs), whole(*inputs))


@pytest.mark.usefixtures("small_repeats")
def test_parts_have_no_weights_and_as_many_as_there_are_kinds() -> None:
    program = MODELS["layers"]()
    parts = split_repeats(program)
    assert parts is not None
    assert [step.part for step in parts.steps] == [0, 1, 1, 1, 1, 2]
    assert not any(part.state_dict or part.constants for part in parts.programs)


class Overlapping(nn.Module):
    """Caches that lie in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cached() for _ in range(4))
        memory = torch.zeros(4 * 6, 8)
        for index, layer in enumerate(self.layers):
            layer.cache = memory[index * 6 : index * 6 + 6]

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, position)
        return x


@pytest.mark.usefixtures("small_repeats")
def test_state_that_shares_memory_stays_in_one_graph() -> None:
    assert split_repeats(program_of(Overlapping(), torch.ones(2, 8), torch.tensor([3, 1]))) is None


@pytest.mark.usefixtures("small_repeats")
def test_a_graph_without_repeats_stays_whole() -> None:
    program = program_of(Stack(Layer(hidden=9), Layer(hidden=10)))
    assert split_repeats(program) is None
    assert mark_edges(program) == 0


def _decoder(num_layers: int, dtype: torch.dtype = torch.float32) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(num_layers=num_layers, dim=64, hidden_dim=96, max_seq=32)
    return Decoder(config).eval().requires_grad_(False).convert(dtype)


def _export(
    num_layers: int,
    reroll: bool,
    target: str,
    dtype: torch.dtype,
    methods: list[str],
    cache: pathlib.Path | None = None,
) -> bytes:
    programs = export_decoder(_decoder(num_layers, dtype), 8)
    options = CompileOptions(progress=False, reroll=reroll, cache_dir=None if cache is None else str(cache))
    lowered = to_edge_transform_and_lower(
        {name: programs[name] for name in methods}, partitioner=[CudaPartitioner(target, options)]
    )
    return bytes(lowered.to_executorch().buffer)


def _delegate(program: bytes) -> DelegateInfo:
    (delegate,) = inspect_program(program).methods[0].delegates
    return delegate


@pytest.mark.slow
def test_a_decoder_in_parts_has_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from executorch.runtime import Runtime

    from etcuda.runtime import Session

    monkeypatch.setattr(repeats, "MIN_SAVED_CALLS", 30)
    methods = ["prefill", "decode"]
    # In bf16 each value that one kernel keeps in fp32 and another reads from memory would be another one.
    data = [_export(4, reroll, "host", torch.bfloat16, methods) for reroll in (True, False)]
    assert [len(_delegate(each).images) for each in data] == [3, 1]
    runtime = Runtime.get()
    programs = [runtime.load_program(each) for each in data]
    loaded = [{name: program.load_method(name) for name in methods} for program in programs]
    calls = [("prefill", torch.arange(7)[None], torch.arange(7))]
    calls += [("decode", torch.tensor([[5 * i]]), torch.tensor([i])) for i in range(7, 11)]
    calls += [("prefill", torch.arange(4)[None] + 9, torch.arange(11, 15)), ("decode", *calls[1][1:])]
    for name, tokens, positions in calls:
        first, second = (each[name].execute((tokens, positions))[0] for each in loaded)
        assert torch.equal(first, second), (name, positions)
        assert first.isfinite().all()
    # A session's state reaches every step.
    sessions = [[Session(), Session()] for _ in loaded]
    for name, tokens, positions in calls[:4]:
        for which in range(2):
            first, second = (
                own[which].execute(each[name], (tokens + which, positions))[0]
                for own, each in zip(sessions, loaded, strict=True)
            )
            assert torch.equal(first, second), (name, positions, which)


@pytest.mark.slow
def test_code_for_a_gpu_does_not_grow_with_layers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(repeats, "MIN_SAVED_CALLS", 30)
    caplog.set_level("INFO")
    few, many = (_delegate(_export(n, True, "sm_90", torch.bfloat16, ["decode"], tmp_path)) for n in (4, 7))
    assert len(few.images) == len(many.images) > 1
    assert [image.kernels for image in few.images] == [image.kernels for image in many.images]
    # The image's own digest of the description is all that differs.
    assert [image.nbytes for image in few.images] == [image.nbytes for image in many.images]
    assert few.num_kernels == many.num_kernels
    # More layers of a model that was compiled before cost nothing.
    assert "compiled before: decode, part 1 of 3, decode, part 2 of 3, decode, part 3 of 3" in caplog.text
