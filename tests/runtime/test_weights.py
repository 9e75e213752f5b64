"""Weights against their digests in the stock Python runtime and in the runner, inside and outside of the program."""

from __future__ import annotations

import pathlib
import shutil
import struct
from collections.abc import Iterator

import pytest
import torch

import etcuda.runtime

from .conftest import MakeProgram, run

runtime = pytest.importorskip("executorch.runtime")

WEIGHT = (1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5)
INITIAL = (10.5, 20.5, 30.5, 40.5, 50.5, 60.5, 70.5, 80.5)


@pytest.fixture(autouse=True)
def _default() -> Iterator[None]:
    yield
    etcuda.runtime.set_verify_weights(True)


def _damaged(source: pathlib.Path, folder: pathlib.Path, values: tuple[float, ...]) -> pathlib.Path:
    """A copy in which one bit of the values is flipped."""
    path = folder / source.name
    shutil.copy(source, path)
    data = bytearray(path.read_bytes())
    stored = struct.pack(f"<{len(values)}f", *values)
    assert data.count(stored) == 1
    data[data.find(stored) + 7] ^= 0x10
    path.write_bytes(data)
    return path


def _load(path: pathlib.Path, data: pathlib.Path | None = None):  # type: ignore[no-untyped-def]
    return runtime.Runtime.get().load_program(path, data_path=data).load_method("forward")


@pytest.mark.parametrize("values", [WEIGHT, INITIAL])
@pytest.mark.parametrize("external", [None, "weights"])
def test_a_flipped_bit(
    make_program: MakeProgram, tmp_path: pathlib.Path, values: tuple[float, ...], external: str | None
) -> None:
    whole = make_program(weight=WEIGHT, state=INITIAL, external=external)
    if external is None:
        damaged, data = _damaged(whole, tmp_path, values), None
    else:
        damaged, data = whole, _damaged(whole.parent / f"{external}.ptd", tmp_path, values)
    with pytest.raises(RuntimeError):
        _load(damaged, data)
    message = etcuda.runtime.last_error()
    name = "layer.weight" if values is WEIGHT else "layer.state"
    assert f"the bytes of {name} are damaged: expected SHA-256" in message
    assert "export the model again" in message
    assert len(message) < 300
    etcuda.runtime.set_verify_weights(False)
    assert _load(damaged, data).execute([torch.ones(3)])[0].shape == (3,)
    assert etcuda.runtime.last_error() == ""
    # Loaded without verification a moment ago, and in memory perhaps still.
    etcuda.runtime.set_verify_weights(True)
    with pytest.raises(RuntimeError):
        _load(damaged, data)


def test_set_verify_weights_takes_a_bool() -> None:
    with pytest.raises(TypeError, match="expected True or False, got 'no'"):
        etcuda.runtime.set_verify_weights("no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        ((), {}, 3, "the bytes of layer.weight are damaged"),
        (("--verify_weights=false",), {}, 0, ""),
        (("--verify_weights", "true"), {"ETCUDA_VERIFY_WEIGHTS": "0"}, 3, "are damaged"),
        ((), {"ETCUDA_VERIFY_WEIGHTS": "0"}, 0, ""),
        ((), {"ETCUDA_VERIFY_WEIGHTS": "1"}, 3, "are damaged"),
        ((), {"ETCUDA_VERIFY_WEIGHTS": "no"}, 3, "ETCUDA_VERIFY_WEIGHTS: expected 0 or 1, got 'no'"),
        (("--verify_weights=no",), {}, 2, "--verify_weights: expected true or false, got 'no'"),
    ],
)
def test_runner(
    runner: pathlib.Path,
    make_program: MakeProgram,
    tmp_path: pathlib.Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    code: int,
    words: str,
) -> None:
    damaged = _damaged(make_program(weight=WEIGHT, state=INITIAL), tmp_path, WEIGHT)
    done = run(runner, "--model_path", damaged, *arguments, **environment)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
