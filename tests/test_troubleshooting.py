"""The table of docs/troubleshooting.md: every message is provoked, and is the one that stands there."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch import nn
from torch.export import Dim

import etcuda.runtime
from etcuda import CudaPartitioner, partition_report, save_program
from etcuda.backend import preprocess
from etcuda.backend.inductor.launchers import KernelResources
from etcuda.backend.worker import client
from etcuda.errors import EtcudaError
from etcuda.target import PORTABLE
from tests.partitioner.test_value_checks import SHAPES, FirstRows

runtime = pytest.importorskip("executorch.runtime")
ROOT = pathlib.Path(__file__).resolve().parent.parent
Export = Callable[[str, str], pathlib.Path]
Provoke = Callable[[pytest.FixtureRequest], str]

PROVOKED: dict[str, Provoke] = {}


def rows() -> list[str]:
    """The messages of the table."""
    section = (ROOT / "docs" / "troubleshooting.md").read_text().split("\n## Messages\n\n")[1].split("\n\n")[0]
    found = re.findall(r"^\| ``(.+?)`` \| .+ \|$", section, re.MULTILINE)
    assert len(found) == len(section.splitlines()) - 2, "a row is not of the form | ``message`` | what to do |"
    assert len(found) == len(set(found)), "a message stands twice"
    return found


def pattern(message: str) -> str:
    """A row's message as a regular expression: dots stand for what differs from case to case."""
    return ".*".join(re.escape(part.strip()) for part in message.split("..."))


def provokes(message: str) -> Callable[[Provoke], Provoke]:
    """Registers what provokes the message of a row, given by its first words."""

    def register(function: Provoke) -> Provoke:
        assert message not in PROVOKED
        PROVOKED[message] = function
        return function

    return register


@pytest.mark.parametrize("message", rows())
def test_row(message: str, request: pytest.FixtureRequest) -> None:
    (provoke,) = [each for start, each in PROVOKED.items() if message.startswith(start)]
    said = provoke(request)
    assert re.search(pattern(message), said, re.DOTALL), f"expected {message!r}, got {said!r}"


def test_nothing_is_provoked_without_a_row() -> None:
    assert [start for start in PROVOKED if not any(row.startswith(start) for row in rows())] == []


def error_of(call: Callable[[], object]) -> str:
    """What a call of ours raises."""
    with pytest.raises(EtcudaError) as caught:
        call()
    return str(caught.value)


def warning_of(call: Callable[[], object], start: str) -> str:
    """The warning of a call that has these words."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    (found,) = {str(each.message) for each in seen if start in str(each.message)}
    return found


def failure_of(path: pathlib.Path, *inputs: torch.Tensor, data: pathlib.Path | None = None) -> str:
    """What the runtime says of a program that does not load or does not run."""
    with pytest.raises(RuntimeError):
        runtime.Runtime.get().load_program(path, data_path=data).load_method("forward").execute(list(inputs))
    return etcuda.runtime.last_error()


def lower(model: nn.Module, *inputs: torch.Tensor, shapes: Any = None, **options: object) -> Any:
    """A model in ExecuTorch's form, for the host."""
    program = torch.export.export(model.eval(), inputs, dynamic_shapes=shapes)
    partitioner = CudaPartitioner("host", options={"progress": False, **options})
    return to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch()


class Pairs(nn.Module):
    """A weight, and an even number of values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 9.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 2).sum(1, keepdim=True) * self.weight


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """``model.pte`` with its weights in ``model.ptd``."""
    path = tmp_path_factory.mktemp("troubleshooting") / "model.pte"
    shapes = ({0: 2 * Dim("d", min=2, max=50)},)
    save_program(lower(Pairs(), torch.ones(10), shapes=shapes, weights="ptd"), path)
    return path


def folder(request: pytest.FixtureRequest) -> pathlib.Path:
    made: pathlib.Path = request.getfixturevalue("tmp_path")
    return made


def patch(request: pytest.FixtureRequest) -> pytest.MonkeyPatch:
    found: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    return found


@provokes("target 'sm90'")
def _(request: pytest.FixtureRequest) -> str:
    return error_of(lambda: CudaPartitioner("sm90"))


@provokes("option 'alow_tf32'")
def _(request: pytest.FixtureRequest) -> str:
    return error_of(lambda: CudaPartitioner("host", options={"alow_tf32": True}))


@provokes("the local GPU is sm_75")
def _(request: pytest.FixtureRequest) -> str:
    patch(request).setattr(torch.cuda, "is_available", lambda: True)
    patch(request).setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    return error_of(lambda: CudaPartitioner("auto"))


@provokes("this model is compiled for sm_90")
def _(request: pytest.FixtureRequest) -> str:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    exported: Export = request.getfixturevalue("exported")
    return failure_of(exported("mlp-bf16", "sm_90"))


@provokes("the weights of layer.weight")
def _(request: pytest.FixtureRequest) -> str:
    path: pathlib.Path = request.getfixturevalue("saved")
    return failure_of(path).replace("of weight", "of layer.weight")


@provokes("the bytes of layer.weight are damaged")
def _(request: pytest.FixtureRequest) -> str:
    path: pathlib.Path = request.getfixturevalue("saved")
    content = bytearray(path.with_suffix(".ptd").read_bytes())
    start = content.index(torch.arange(1.0, 9.0).numpy().tobytes())
    content[start + 6] ^= 8
    (folder(request) / "model.ptd").write_bytes(content)
    return failure_of(path, data=folder(request) / "model.ptd").replace("of weight", "of layer.weight")


@provokes("model.ptd: expected no such file")
def _(request: pytest.FixtureRequest) -> str:
    path: pathlib.Path = request.getfixturevalue("saved")
    there = folder(request)
    (there / "model.ptd").write_bytes(path.with_suffix(".ptd").read_bytes())
    model = Pairs()
    model.weight.data += 1
    return error_of(lambda: save_program(lower(model, torch.ones(10), weights="ptd"), there / "model.pte"))


@provokes("the bytes of layer.weight: expected SHA-256")
def _(request: pytest.FixtureRequest) -> str:
    from etcuda.backend.weight_bytes import StoredWeight, WeightBytes

    weight = torch.ones(4)
    stored = StoredWeight(WeightBytes(weight.untyped_storage(), weight.nbytes), "layer.weight")
    weight += 1
    return error_of(stored.to_bytes)


@provokes("layer.weight: row 5")
def _(request: pytest.FixtureRequest) -> str:
    from etcuda import Int4CoalescedConfig, quantize_weights

    model = nn.Sequential(OrderedDict(layer=nn.Linear(64, 8)))
    model.layer.weight.data[5] *= 1e-9
    return error_of(lambda: quantize_weights(model, Int4CoalescedConfig(group_size=32)))


@provokes("chat.session is no saved session")
def _(request: pytest.FixtureRequest) -> str:
    path = folder(request) / "chat.session"
    path.write_bytes(bytes(200))
    return error_of(lambda: etcuda.runtime.Session().restore(path))


@provokes("libetcuda_runtime.so was not found")
def _(request: pytest.FixtureRequest) -> str:
    import etcuda.library

    patch(request).setattr(etcuda.library, "_roots", lambda: [folder(request)])
    return error_of(etcuda.library.find_library)


@provokes("preflight: C++ compiler")
def _(request: pytest.FixtureRequest) -> str:
    patch(request).setenv("PATH", str(folder(request)))
    patch(request).delenv("CXX", raising=False)
    return preflight(request)


@provokes("preflight: Python")
def _(request: pytest.FixtureRequest) -> str:
    patch(request).setattr(sys, "version_info", (3, 9, 2))
    return preflight(request)


def preflight(request: pytest.FixtureRequest) -> str:
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "scripts" / "preflight.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    capture = request.getfixturevalue("capsys")
    assert module.main() == 1
    printed: str = capture.readouterr().err
    return printed


@provokes("the C++ compiler failed on generated code")
def _(request: pytest.FixtureRequest) -> str:
    # What GCC 9 prints, without it.
    compiler = folder(request) / "g++-9"
    compiler.write_text(
        '#!/bin/sh\ntest "$1" = --version && exec echo "g++ 9"\n'
        "echo \"g++-9: error: unrecognized command line option '-std=c++20'\" >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    patch(request).setenv("CXX", str(compiler))
    return error_of(lambda: lower(Pairs(), torch.ones(10)))


@provokes("input 0 (x): dimension 0 has size 7")
def _(request: pytest.FixtureRequest) -> str:
    path: pathlib.Path = request.getfixturevalue("saved")
    return failure_of(path, torch.ones(7), data=path.with_suffix(".ptd"))


@provokes("expected n.item() <= x.shape[0]")
def _(request: pytest.FixtureRequest) -> str:
    save_program(lower(FirstRows(), torch.ones(8, 3), torch.tensor(4), shapes=SHAPES), folder(request) / "m.pte")
    return failure_of(folder(request) / "m.pte", torch.ones(8, 3), torch.tensor(9))


class Convolutions(nn.Module):
    """Two convolutions that learn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


@provokes("input 0 (x), dimension 0: declared for sizes 1..64")
def _(request: pytest.FixtureRequest) -> str:
    shapes = ({0: Dim("batch", min=1, max=64), 2: Dim("height", min=8, max=64)},)
    program = torch.export.export(Convolutions(), (torch.ones(2, 3, 8, 16),), dynamic_shapes=shapes)
    return warning_of(lambda: partition_report(program, "host"), "declared for sizes")


class Counter(nn.Module):
    """State that two methods share."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.register_buffer("count", torch.full((2,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(x)
        return self.count * 1.0


@provokes("buffer 'count' is state that methods 'first' and 'second' share")
def _(request: pytest.FixtureRequest) -> str:
    methods = {
        name: torch.export.export(Counter(start), (torch.ones(2),)) for name, start in (("first", 0.0), ("second", 3.0))
    }
    partitioner = {name: [CudaPartitioner("host", options={"progress": False})] for name in methods}
    return error_of(lambda: to_edge_transform_and_lower(methods, partitioner=partitioner))


class Wrapped(nn.Module):
    """A counter under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Counter(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)  # type: ignore[no-any-return]


@provokes("methods 'first' and 'second' do not share")
def _(request: pytest.FixtureRequest) -> str:
    # What follows the check, compiling, is not wanted.
    patch(request).setattr(preprocess, "_prepare", None)

    def lower_both() -> None:
        models = {"first": Counter(0.0), "second": Wrapped()}
        methods = {name: torch.export.export(model, (torch.ones(2),)) for name, model in models.items()}
        partitioner = {name: [CudaPartitioner("host")] for name in methods}
        with pytest.raises(TypeError, match="NoneType"):
            to_edge_transform_and_lower(methods, partitioner=partitioner)

    return warning_of(lower_both, "do not share buffer")


def reasons_of(model: nn.Module, target: str, *inputs: torch.Tensor, shapes: Any = None) -> str:
    """Why the partitioner leaves what it leaves."""
    report = partition_report(torch.export.export(model, inputs, dynamic_shapes=shapes), target)
    return "\n".join(refusal.reason for refusal in report.refusals)


@provokes("aten.rand_like.default draws")
def _(request: pytest.FixtureRequest) -> str:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    return reasons_of(Noise(), "host", torch.ones(3))


@provokes("aten.sort.default on the GPU")
def _(request: pytest.FixtureRequest) -> str:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sort(x)[0]

    return reasons_of(Sorted(), "sm_90", torch.ones(30), shapes=({0: Dim("n")},))


@provokes("this program's complex numbers")
def _(request: pytest.FixtureRequest) -> str:
    class Inverse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(torch.linalg.inv(torch.view_as_complex(x)))

    return warning_of(lambda: reasons_of(Inverse(), "host", torch.ones(3, 3, 2)), "complex numbers")


@provokes("no delegate computes aten::linalg_qr.out")
def _(request: pytest.FixtureRequest) -> str:
    class Factors(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.qr(x)[0]

    # ExecuTorch's check of operators would refuse it before.
    config = EdgeCompileConfig(_check_ir_validity=False)
    program = torch.export.export(Factors(), (torch.rand(3, 3),))
    return warning_of(
        lambda: to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("host")], compile_config=config),
        "no delegate computes",
    )


@provokes("compiling forward: the process that compiled it")
def _(request: pytest.FixtureRequest) -> str:
    return str(client._failure(folder(request), "forward", -9, 0))


@provokes("kernel conv")
def _(request: pytest.FixtureRequest) -> str:
    return error_of(lambda: KernelResources(32, 0, 102400, 4).check("conv", PORTABLE))


@provokes("nonzero (torch.argwhere")
def _indices(_request: pytest.FixtureRequest) -> str:
    class Places(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nonzero(x)

    return error_of(lambda: lower(Places(), torch.eye(3)))
