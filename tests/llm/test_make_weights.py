"""Programs without their weights, and the weights made elsewhere."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import etcuda.llm.make_weights as make_weights_module
from etcuda.cli import main
from etcuda.errors import CheckpointError, WeightFormatError
from etcuda.kernels.weights.config import Int4CoalescedConfig, Int8CoalescedConfig, quantize_tensor
from etcuda.llm.export import ExportOptions, check_left_out
from etcuda.llm.make_weights import make_weights
from etcuda.llm.random_weights import RandomWeights
from etcuda.llm.weights_description import describe
from etcuda.passes.graph.recipes import is_deferred, pieces_of, recipe_of
from tests.llm.conftest import checkpoint

__all__ = ["checkpoint"]  # Fixtures.


def made(weight: Tensor) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in pieces_of(weight)]).reshape(weight.shape)


@pytest.mark.parametrize("config", [Int4CoalescedConfig(), Int8CoalescedConfig(64), Int4CoalescedConfig(128)])
@pytest.mark.parametrize("shape", [(3, 256), (5000, 128), (1, 1 << 19)])
def test_quantised_weights_are_those_of_the_dense_ones(config: Any, shape: tuple[int, ...]) -> None:
    dense = made(RandomWeights({"w": shape}, 5, 0.02, torch.bfloat16).read("w"))
    assert (dense.dtype, dense.shape) == (torch.bfloat16, shape)
    found = RandomWeights({"w": shape}, 5, 0.02, torch.bfloat16, {"w": config}, defer=True).read("w")
    at_once = RandomWeights({"w": shape}, 5, 0.02, torch.bfloat16, {"w": config}).read("w")
    wanted = quantize_tensor(dense, config, "w")
    assert type(found) is type(wanted)
    components = found.components  # type: ignore[attr-defined]
    assert components.keys() == wanted.components.keys()
    for name, component in components.items():
        assert is_deferred(component)
        assert torch.equal(made(component), wanted.components[name])
        assert torch.equal(at_once.components[name], wanted.components[name])  # type: ignore[attr-defined]
        # What has been made is not kept: the tensor itself has no bytes.
        assert not component.view(torch.uint8).any()


def test_numbers_depend_on_names_and_not_on_what_is_made_at_a_time() -> None:
    short, long = (RandomWeights({"w": (count,)}, 1, 0.02, defer=True).read("w") for count in (1001, (1 << 20) + 3))
    assert torch.equal(made(long)[:1001], made(short))
    assert is_deferred(long)
    # Constants that passes may look at are there.
    assert not is_deferred(short)
    assert torch.equal(made(short), short)
    assert recipe_of(short) is not None


def test_a_weight_that_its_format_does_not_hold_is_named() -> None:
    thin = RandomWeights({"thin": (4, 64)}, 0, 1e-9, torch.float32, {"thin": Int4CoalescedConfig()})
    with pytest.raises(WeightFormatError, match=r"thin: "):
        thin.read("thin")


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shapes = {"a": (64, 64), "b": (64, 64), "big": (1024, 300)}
        configs = {"a": Int4CoalescedConfig(), "b": Int4CoalescedConfig()}
        seeded = RandomWeights(shapes, 7, 0.02, torch.float32, configs, defer=True)
        self.a, self.b, self.big = (torch.nn.Parameter(seeded.read(name), requires_grad=False) for name in shapes)
        self.register_buffer("constant", torch.arange(64.0))
        self.register_buffer("state", torch.full((1, 64), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        self.state.add_(1)
        linear = torch.nn.functional.linear
        joined = linear(x, self.a) * linear(x, self.b) * self.constant + self.state
        out: Tensor = joined + self.big[0, :64] + self.big[1, :64]
        return out


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a program of seeded weights, ``m.pte``, their description, and ``wanted.ptd``."""
    from executorch.exir import to_edge_transform_and_lower

    from etcuda import CudaPartitioner, save_program

    folder = tmp_path_factory.mktemp("described")
    exported = torch.export.export(_Model().eval(), (torch.zeros(1, 64),))
    partitioner = CudaPartitioner(target="host", options={"weights": "ptd"})
    program = to_edge_transform_and_lower(exported, partitioner=[partitioner]).to_executorch()
    assert save_program(program, folder / "m.pte", describe=describe) == [folder / "m.weights.json", folder / "m.pte"]
    save_program(program, folder / "wanted.pte")
    # ExecuTorch's own writing gives the same.
    program.write_tensor_data_to_file(str(folder))
    own = folder / "etcuda-weights.ptd"
    assert own.read_bytes() == (folder / "wanted.ptd").read_bytes()
    own.unlink()
    return folder


def test_weights_that_are_left_to_others_are_refused() -> None:
    # All of them are: nothing was lowered.
    exported = torch.export.export(_Model().eval(), (torch.zeros(1, 64),))
    with pytest.raises(CheckpointError, match=r"a, b, big: expected etcuda to take every operator that reads seeded"):
        check_left_out({"forward": exported})


def test_made_weights_are_those_of_the_export(described: pathlib.Path, tmp_path: pathlib.Path) -> None:
    heard: list[tuple[int, int]] = []
    path = make_weights(described / "m.pte", tmp_path / "m.ptd", lambda done, total: heard.append((done, total)))
    assert path.read_bytes() == (described / "wanted.ptd").read_bytes()
    assert heard[-1][0] == heard[-1][1] > 1 << 20
    description = json.loads((described / "m.weights.json").read_bytes())
    assert description["weights"].keys() == {"a", "b", "big"}
    assert description["weights"]["a"]["format"]["group_size"] == 32
    # Of the description alone, beside it.
    (tmp_path / "m.weights.json").write_bytes((described / "m.weights.json").read_bytes())
    assert make_weights(tmp_path / "m.weights.json") == tmp_path / "m.ptd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["weights"]["big"].update(seed=8), r"big \(values\): expected bytes of SHA-256 \w+, as etcuda .*"),
        (lambda d: d["entries"][0].update(nbytes=5), r"ValueError: 5 bytes at \d+, whose weights are \d+ bytes"),
        (lambda d: d.update(nbytes=100), r"ValueError: bytes at 100, where others end at \d+"),
        (lambda d: d.pop("weights"), "KeyError: 'weights'. Copy the file again"),
        (lambda d: d["weights"]["a"]["format"].update(group_size=7), "group_size: expected one of 32, 64, 128, 256"),
        (lambda d: d.update(version=9), "version 9, where 1 is read"),
        (lambda d: d["entries"][0].update(sha256="0" * 64), "which reads .*, got one that does not read 1 of them"),
    ],
)
def test_wrong_descriptions(
    described: pathlib.Path, tmp_path: pathlib.Path, change: Callable[[Any], object], message: str
) -> None:
    description = json.loads((described / "m.weights.json").read_bytes())
    change(description)
    (tmp_path / "m.weights.json").write_text(json.dumps(description))
    (tmp_path / "m.pte").write_bytes((described / "m.pte").read_bytes())
    (tmp_path / "m.ptd").write_bytes(b"before")
    with pytest.raises(CheckpointError, match=message):
        make_weights(tmp_path / "m.pte")
    assert (tmp_path / "m.ptd").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 3


# Writes a file in many small steps, of which it tells the first.
_SLOWLY = """
import pathlib, signal, sys, time
# Whatever this process was started with: a shell's background jobs ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
import etcuda.llm.make_weights as made, etcuda.llm.random_weights as random_weights
random_weights._CHUNK = 1 << 10
write_at = made.write_at
def slowly(*arguments):
    end = write_at(*arguments)
    print("writing", flush=True)
    time.sleep(0.1)
    return end
made.write_at = slowly
made.make_weights(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_is_interrupted_leaves_no_half_file(
    described: pathlib.Path, tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    for name in ("m.pte", "m.weights.json"):
        (tmp_path / name).write_bytes((described / name).read_bytes())
    (tmp_path / "m.ptd").write_bytes(b"before")
    command = [sys.executable, "-c", _SLOWLY, str(tmp_path / "m.pte")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(number)
    _, said = child.communicate()
    # The interpreter ends by the signal, or with 1 for an exception that nobody took.
    assert child.returncode in ({1, -number} if number == signal.SIGINT else {-number}), said
    assert (tmp_path / "m.ptd").read_bytes() == b"before"
    # What was killed could not take its own folder away.
    left = {path.name for path in tmp_path.iterdir()} - {"m.pte", "m.weights.json", "m.ptd"}
    assert all(name.startswith(".etcuda-") for name in left)
    assert len(left) == (number == signal.SIGKILL)
    make_weights(tmp_path / "m.pte")
    assert (tmp_path / "m.ptd").read_bytes() == (described / "wanted.ptd").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"m.pte", "m.weights.json", "m.ptd"}, "the next one clears up"


def test_processes_make_the_same_bytes(
    described: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_weights_module, "_WORTH_PROCESSES", 0)
    heard: list[tuple[int, int]] = []
    file = make_weights(described / "m.pte", tmp_path / "m.ptd", lambda *done: heard.append(done))
    assert file.read_bytes() == (described / "wanted.ptd").read_bytes()
    assert heard[-1][0] == heard[-1][1] > 0


def test_a_worker_that_fails_says_why(
    described: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_weights_module, "_WORTH_PROCESSES", 0)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no python here >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(CheckpointError, match=r"expected a worker to end with 0, got 3. It said: no python here"):
        make_weights(described / "m.pte", tmp_path / "m.ptd")
    assert not (tmp_path / "m.ptd").exists()


def test_the_command_without_a_description(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", str(tmp_path / "m.pte")]) == 2
    assert "m.weights.json: expected a description of weights, got no such file" in capsys.readouterr().err


def test_weights_that_nobody_could_make(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "m.pte"), "--weights", "none"]) == 2
    assert "--weights none: expected --random with it, got a checkpoint's weights" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"write_weights: expected True, or a random_seed and weights that go to"):
        ExportOptions(write_weights=False)


@pytest.mark.slow
def test_from_an_export_without_weights_to_tokens(
    checkpoint: Callable[[str], pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--target", "host", "--dtype", "fp32", "--max-seq-len", "64", "--chunk", "16", "--random", "-o"]
    for name, more in (("m", ["--weights", "none"]), ("wanted", [])):
        path = str(tmp_path / f"{name}.pte")
        assert main(["export", str(checkpoint("llama")), *arguments, path, "--quant", "int4", *more]) == 0
    assert main(["weights", str(tmp_path / "m.pte")]) == 0
    for suffix in (".pte", ".ptd"):
        assert (tmp_path / f"m{suffix}").read_bytes() == (tmp_path / f"wanted{suffix}").read_bytes()
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "m.pte"), "--ids", "3,4,5", "-n", "4", "-q", "--ignore-eos"]) == 0
    assert len(capsys.readouterr().out) > 1
