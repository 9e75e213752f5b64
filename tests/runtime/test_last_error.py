"""``last_error()`` in the stock Python runtime: whose sentence it is, and text that is not UTF-8."""

from __future__ import annotations

import hashlib
import pathlib
import struct
import sys
import threading

import pytest
import torch

import etcuda.runtime
from etcuda.backend.blob import MAGIC

from .conftest import MakeProgram, run

runtime = pytest.importorskip("executorch.runtime")


def _load(path: pathlib.Path):  # type: ignore[no-untyped-def]
    return runtime.Runtime.get().load_program(path).load_method("forward")


def _fails(method, *inputs: torch.Tensor) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(RuntimeError):
        method.execute(list(inputs))
    return etcuda.runtime.last_error()


def test_it_is_the_last_calls(make_program: MakeProgram) -> None:
    method = _load(make_program())
    assert etcuda.runtime.last_error() == ""
    # The delegate refuses a first element of its own; ExecuTorch refuses the dtype and the size before it.
    ours = _fails(method, torch.tensor([-101.0, 0]))
    assert "running method forward failed" in ours
    assert "unexpected scalar type" in _fails(method, torch.ones(3, dtype=torch.float64))
    assert _fails(method, torch.tensor([-101.0, 0])) == ours
    assert "resiz" in _fails(method, torch.ones(9))
    etcuda.runtime.reset_state()
    method.execute([torch.ones(3)])
    assert etcuda.runtime.last_error() == ""


def test_it_is_the_threads(make_program: MakeProgram) -> None:
    method = _load(make_program())
    ours = _fails(method, torch.tensor([-101.0, 0]))
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(etcuda.runtime.last_error()))
    thread.start()
    thread.join()
    assert seen == [""]
    assert etcuda.runtime.last_error() == ours


LOAD = """
import sys
import etcuda.runtime
from executorch.runtime import Runtime
for path in sys.argv[1:]:
    try:
        Runtime.get().load_program(path).load_method("forward")
    except RuntimeError:
        print(etcuda.runtime.last_error(), end="\\0")
    else:
        print("loaded", end="\\0")
"""


def _errors_of(*programs: pathlib.Path) -> list[str]:
    """What is said of each, in a process that ends if a text cannot be told."""
    done = run(sys.executable, "-W", "ignore", "-c", LOAD, *programs)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


def _renamed(path: pathlib.Path, old: bytes, new: bytes) -> bytes:
    """The program with another text in the delegate's description, whose hash fits."""
    data = bytearray(path.read_bytes())
    start = data.find(MAGIC)
    (size,) = struct.unpack_from("<Q", data, start + 16)
    place = data.find(old, start, start + 64 + size)
    assert place > 0
    assert len(old) == len(new)
    data[place : place + len(old)] = new
    data[start + 24 : start + 56] = hashlib.sha256(data[start + 64 : start + 64 + size]).digest()
    return bytes(data)


RENAMED = [
    (b"etcuda/w/", b"\xfftcuda/w/", "layer.weight (key \\xfftcuda/w/"),
    # The last character is cut off, and the bytes of the weight are gone.
    (b"layer.weight\0", b"layer.weigh\xe2\0", "layer.weigh\\xe2"),
    (b"etcuda/w/", b"etcuda\x1b[m", "etcuda\\x1b[m"),
]


def test_names_that_are_not_utf8(make_program: MakeProgram, tmp_path: pathlib.Path) -> None:
    # The weight's own bytes too, so that each case fails where it names what it misses.
    weight = struct.pack("<8f", 1, 2, 3, 4, 5, 6, 7, 8)
    paths = [tmp_path / f"{number}.pte" for number in range(len(RENAMED) + 1)]
    for path, (old, new, _) in zip(paths, RENAMED, strict=False):
        path.write_bytes(_renamed(make_program(), old, new).replace(weight, weight[:-1] + b"\x00"))
    # The backend's name in the program: ExecuTorch says that it knows none of that name.
    paths[-1].write_bytes(make_program().read_bytes().replace(b"EtcudaBackend", b"Etcuda\xff\xfeckend"))
    said = _errors_of(*paths)
    for text, words in zip(said, [*(words for _, _, words in RENAMED), "Etcuda\\xff\\xfeckend"], strict=True):
        assert words in text
