"""State that the methods of one program share, whatever each of them does with it."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from executorch.exir.backend.backend_details import PreprocessResult
from executorch.exir.backend.partitioner import Partitioner, PartitionResult
from torch import Tensor, nn
from torch.export import ExportedProgram

import etcuda.runtime
from etcuda import CudaPartitioner, save_program
from etcuda.backend import preprocess
from etcuda.backend.constants import collect_constants
from etcuda.backend.state import check_program, name_state
from etcuda.errors import StateError
from tests.partitioner.tagging import left, left_over

runtime = pytest.importorskip("executorch.runtime")
assert etcuda.runtime.is_registered()

X = torch.tensor([1.0, 2.0, 3.0])
NAMES = (*("read", "viewed", "copied", "cast", "spread", "filled", "returned", "old", "left", "right", "outside"),)


class Stateful(nn.Module):
    """Buffers that several of these have in common; 5.0 each, and a counter without dimensions."""

    def __init__(self, buffers: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        own = {**{name: torch.full((3,), 5.0) for name in NAMES}, "count": torch.tensor(2)}
        for name, value in (buffers or own).items():
            self.register_buffer(name, value)


class Adds(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        for name in NAMES:
            getattr(self, name).add_(x)
        self.count.add_(1)
        return torch.stack([getattr(self, name) for name in NAMES])


class Mixed(Stateful):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.copied.copy_(x)
        self.cast.copy_(x.to(torch.bfloat16))
        self.spread.copy_(x[:1])
        self.filled.fill_(3)
        self.returned.add_(x)
        old = self.old.clone()
        self.old.add_(x)
        left = self.left.clone()
        self.left.copy_(self.right)
        self.right.copy_(left)
        self.outside.add_(x)
        written = (self.returned, old, self.copied * 1.0, self.cast * 1.0, self.spread * 1.0)
        return (*written, self.read * x + self.count, torch.nonzero(self.outside - 6))


class Overwrites(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        for name in NAMES:
            getattr(self, name).zero_()
        self.count.fill_(7)
        return x


class Gets(Stateful):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.read, self.viewed[1:].to(torch.float64), self.filled, self.left, self.right


METHODS: dict[str, type[Stateful]] = {"add": Adds, "mixed": Mixed, "overwrite": Overwrites, "get": Gets}


def export(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    return torch.export.export(module, inputs or (X,))


def lower(methods: Mapping[str, nn.Module], target: str = "host") -> EdgeProgramManager:
    """Lowers modules as methods, each with a partitioner of its own."""
    partitioners = {name: [CudaPartitioner(target, options={"progress": False})] for name in methods}
    return to_edge_transform_and_lower({k: export(m) for k, m in methods.items()}, partitioner=partitioners)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    buffers = dict(Stateful().named_buffers())
    path = tmp_path_factory.mktemp("state") / "shared.pte"
    save_program(lower({name: kind(buffers) for name, kind in METHODS.items()}).to_executorch(), path)
    return path


@pytest.mark.parametrize(
    "order",
    ["add mixed add get", "overwrite add mixed get", "get mixed mixed add overwrite get add get", "mixed get"],
)
def test_every_method_sees_what_the_others_wrote(shared: pathlib.Path, order: str) -> None:
    program = runtime.Runtime.get().load_program(shared)
    loaded = {name: program.load_method(name) for name in METHODS}
    buffers = dict(Stateful().named_buffers())
    modules = {name: kind(buffers) for name, kind in METHODS.items()}
    for step, name in enumerate(order.split()):
        x = X * (step + 1)
        with torch.no_grad():
            expected = modules[name](x)
        expected = [each.clone() for each in (expected if isinstance(expected, tuple) else (expected,))]
        got = loaded[name].execute([x])
        for index, (a, b) in enumerate(zip(got, expected, strict=True)):
            torch.testing.assert_close(a, b, msg=lambda text, at=(step, name, index): f"{at}: {text}")


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowering with every check before the compiler, and delegates without code."""

    def prepare(jobs: list[Any]) -> list[PreprocessResult]:
        state = preprocess._shared_state(jobs)
        made = [preprocess._prepare(*job, names) for job, names in zip(jobs, state, strict=True)]
        preprocess.check_content([(each.method, each.constants) for each in made])
        return [PreprocessResult(processed_bytes=b"\1") for _ in jobs]

    monkeypatch.setattr(preprocess, "_preprocess_all", prepare)


class One(nn.Module):
    """A module of a function with one buffer."""

    def __init__(self, function: Callable[[Any, Tensor], Any], state: Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("state", torch.full((3,), 5.0) if state is None else state)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def add(m: One, x: Tensor) -> Tensor:
    m.state.add_(x)
    return m.state * 1.0


def read(m: One, x: Tensor) -> Tensor:
    return m.state * x


def two_partitions(m: One, x: Tensor) -> Tensor:
    y = left_over(m.state * x, 3)
    m.state.copy_(y.exp())
    return y


def two_partitions_that_run(m: One, x: Tensor) -> Tensor:
    # Not claimed, and ExecuTorch's own runtime has a kernel for it.
    y = torch.ops.aten._pdist_forward.default((m.state * x)[:, None], 2.0)
    m.state.copy_(y.exp())
    return y


def reset_and_return_nothing(m: One, x: Tensor) -> None:
    m.state.zero_()


def read_outside(m: One, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nonzero(m.state), x + 1


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("first", "other", "words"),
    [
        (add, read_outside, "'b' leaves it to others: aten_nonzero_default read it outside"),
        (add, two_partitions, "'b' leaves it to others: .*outside the partition that writes it"),
        (add, reset_and_return_nothing, "'b' leaves it to others: .*computes nothing that the method returns"),
        (read, two_partitions, "'b' leaves it to others: .*outside the partition that writes it"),
    ],
)
def test_what_cannot_be_shared_is_refused(first: Any, other: Any, words: str) -> None:
    with pytest.raises(StateError, match=words) as caught:
        lower({"a": One(first), "b": One(other)})
    assert "buffer 'state' is state that methods 'a', 'b' share" in str(caught.value)
    assert "(buffer + 0)" in str(caught.value)


@pytest.mark.usefixtures("nothing_compiled")
def test_different_shapes_are_refused() -> None:
    with pytest.raises(StateError, match=r"one shape and dtype, got \[3\] torch.float32 in 'a'; \[1\] torch.float32"):
        lower({"a": One(add), "b": One(read, torch.zeros(1))})
    with pytest.raises(StateError, match=r"\[3\] torch.float64 in 'b'"):
        lower({"a": One(add), "b": One(read, torch.zeros(3, dtype=torch.float64))})


@pytest.mark.usefixtures("nothing_compiled")
def test_different_contents_are_refused() -> None:
    with pytest.raises(StateError, match=r"'a' and 'b' share; expected one initial content, got .*SHA-256.*of zeros"):
        lower({"a": One(add), "b": One(read, torch.zeros(3))})
    lower({"a": One(add), "b": One(read)})
    # Nothing writes to it: two constants.
    lower({"a": One(read), "b": One(read, torch.zeros(3))})


@pytest.mark.usefixtures("nothing_compiled")
def test_different_devices_are_refused() -> None:
    methods = {"a": export(One(add)), "b": export(One(read))}
    partitioners = {"a": [CudaPartitioner("host")], "b": [CudaPartitioner("sm_90")]}
    with pytest.raises(StateError, match="expected one device, got the host in 'a', the GPU in 'b'"):
        to_edge_transform_and_lower(methods, partitioner=partitioners)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.usefixtures("nothing_compiled")
def test_a_name_that_differs_by_a_prefix_draws_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"do not share buffer 'state' of the one and 'inner\.state' of the other"):
        lower({"a": One(add), "b": Wrapped(One(read))})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "methods .* do not share")
        lower({"a": One(read), "b": Wrapped(One(read))})
        lower({"a": One(add), "b": Wrapped(One(read, torch.zeros(4)[:1]))})
        lower({"a": Wrapped(One(add)), "b": Wrapped(One(read))})


class Takes(Partitioner):
    """Another backend, whose partitions hold what it reads."""

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        return PartitionResult(exported_program, {})


@pytest.mark.usefixtures("nothing_compiled")
def test_methods_without_a_delegate_are_seen_when_a_program_is_saved(tmp_path: pathlib.Path) -> None:
    methods = {"a": export(One(add)), "b": export(One(read))}
    for others in ({}, {"b": [Takes()]}):
        lowered = to_edge_transform_and_lower(methods, partitioner={"a": [CudaPartitioner("host")], **others})
        with pytest.raises(StateError, match="method 'b' leaves it to others: ExecuTorch's own operators use it"):
            save_program(lowered.to_executorch(), tmp_path / "program.pte")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_compiled")
def test_programs_that_share_nothing_are_saved() -> None:
    lowered = lower({"a": One(two_partitions), "b": Wrapped(One(read, torch.zeros(1)))})
    check_program({name: lowered.exported_program(name) for name in lowered.methods})
    plain = to_edge_transform_and_lower({"a": export(One(add)), "b": export(One(read))})
    check_program({name: plain.exported_program(name) for name in plain.methods})


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("content", [0.0, 5.0])
def test_executorch_stores_the_content_of_a_buffer_that_stays_with_it(content: float) -> None:
    program = lower({"forward": One(two_partitions, torch.full((3,), content))}).exported_program()
    (placeholder,) = (node for node in program.graph.nodes if node.name == "b_state")
    assert placeholder.meta.get("et_init_buffer", False) == (content != 0)


def test_the_content_of_a_buffer_that_stays_is_kept(tmp_path: pathlib.Path) -> None:
    module = One(two_partitions_that_run)
    lowered = lower({"forward": module})
    assert left(lowered)["aten._pdist_forward.default"] == 1
    save_program(lowered.to_executorch(), tmp_path / "kept.pte")
    method = runtime.Runtime.get().load_program(tmp_path / "kept.pte").load_method("forward")
    for _ in range(3):
        with torch.no_grad():
            expected = module(X / 4)
        torch.testing.assert_close(method.execute([X / 4])[0], expected)


def test_aliases_are_one_state() -> None:
    class Writes(nn.Module):
        def __init__(self, name: str, value: Tensor) -> None:
            super().__init__()
            self.register_buffer(name, value)
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            state = getattr(self, self.name)
            state.add_(x)
            return x

    class ReadsTail(nn.Module):
        def __init__(self, whole: Tensor) -> None:
            super().__init__()
            self.register_buffer("tail", whole[1:])

        def forward(self, x: Tensor) -> Tensor:
            return self.tail * x[1:]

    whole = torch.zeros(3)
    modules = (Writes("whole", whole), ReadsTail(whole), Writes("same", whole))
    programs = [export(module).run_decompositions() for module in modules]
    names = frozenset(name for each in programs for name in each.graph_signature.buffers_to_mutate.values())
    assert names == {"whole", "same"}
    state = name_state(programs, names)
    assert state == [{"whole": "whole"}, {"tail": "whole"}, {"same": "whole"}]
    tables = [collect_constants(program, each) for program, each in zip(programs, state, strict=True)]
    assert [[s.state_name for s in table.storages] for table in tables] == [["whole"]] * 3
    # Equal names make one state of storages that are apart.
    other = export(Writes("same", torch.zeros(3))).run_decompositions()
    assert name_state([*programs, other], names)[3] == {"same": "whole"}
