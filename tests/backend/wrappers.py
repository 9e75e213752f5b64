"""The code that is generated for a GPU that is not here, and which kernels it launches for a number of tokens."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from torch.export import ExportedProgram

from etcuda.backend.worker.client import default_cache_dir
from etcuda.backend.worker.job import JobRequest, write_request
from etcuda.options import CompileOptions
from etcuda.target import TARGETS

# Stands in for a device for all of its process, as the compile worker does.
_SCRIPT = """
import hashlib, json, pathlib, sys
import torch
from etcuda.backend.inductor import capture, device, early, kernel_cache
from etcuda.backend.worker.job import read_request
from etcuda.backend.worker.move import move_to_device

folder = pathlib.Path(sys.argv[1])
request = read_request(folder)
device.install(request.target)
kernel_cache.install()
define, sources = early._define_kernel, {}

def record(scheduling, source, *rest):
    name = define(scheduling, source, *rest)
    sources[name] = source
    return name

early._define_kernel = record
for name in sys.argv[2:]:
    if name == "nested":
        capture.straight.straighten = lambda module: 0
    moved = move_to_device(request.program, torch.device("cuda", 0), request.tied)
    code = capture.generate(moved.module, moved.inputs, request.target, False, lambda *_: None)
    digests = {kernel: hashlib.sha256(data).hexdigest() for kernel, data in code.cubins.items()}
    (folder / name).write_text(json.dumps([code.wrapper, digests, sources]))
    request = read_request(folder)
"""


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """Generated C++, the digests of the kernels that it launches, and the sources of those that Inductor made."""

    text: str
    cubins: Mapping[str, str]
    sources: Mapping[str, str]

    @property
    def body(self) -> str:
        """The function that a call of the program runs."""
        return self.text.split("::run_impl(")[-1]

    @property
    def depth(self) -> int:
        """How many branches by sizes there are at most in one another."""
        return max(depth for _, depth, _ in self._lines({}, everything=True))

    def launches(self, sizes: Mapping[str, int]) -> list[tuple[str, tuple[int, ...]]]:
        """Digests of the kernels and their grids, in order, those that are not empty, for values of its symbols."""
        found = []
        for line, _, taken in self._lines(sizes):
            call = re.match(r"call_(\w+)\((.*)\);$", line)
            if call is None or not taken:
                continue
            parts = _split(call[2])
            place = parts.index("this->device_idx_")
            # What Inductor generates itself has a grid that the function computes from the sizes in front.
            is_given = re.search(rf"\bcall_{call[1]}\(\n[^)]*\b_grid_0\b", self.text) is not None
            grid = tuple(_evaluate(part, sizes) for part in parts[place - 3 : place]) if is_given else (1,)
            if all(grid):
                found.append((self.cubins[call[1]], grid))
        return found

    def _lines(self, sizes: Mapping[str, int], everything: bool = False) -> Iterator[tuple[str, int, bool]]:
        """Each line, how many branches it lies in, and whether it runs."""
        branches: list[bool | None] = []
        for line in map(str.strip, self.body.partition(") {\n")[2].splitlines()):
            before = True
            if line.startswith("}") and branches:
                before = bool(branches.pop())
            if line.endswith("{"):
                predicate = re.search(r"if \((.*)\) \{$", line)
                if line == "} else {":
                    branches.append(not before)
                elif predicate is None or not re.search(r"\bs\d+\b", predicate[1]):
                    branches.append(None)
                else:
                    assert not line.startswith("}"), line
                    branches.append(everything or bool(_evaluate(predicate[1], sizes)))
            yield line, sum(each is not None for each in branches), all(each in (None, True) for each in branches)


def generate(program: ExportedProgram, folder: pathlib.Path) -> tuple[Wrapper, Wrapper]:
    """Code for sm_90 of a program after the passes: as it is generated, and with its choices nested."""
    straight, nested = _generate(program, folder, ("straight", "nested"))
    return straight, nested


def generate_straight(program: ExportedProgram, folder: pathlib.Path) -> Wrapper:
    """Code for sm_90 of a program after the passes, as it is generated."""
    (straight,) = _generate(program, folder, ("straight",))
    return straight


def _generate(program: ExportedProgram, folder: pathlib.Path, names: Sequence[str]) -> list[Wrapper]:
    write_request(folder, JobRequest(program, TARGETS["sm_90"], CompileOptions(), {}))
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
        "TRITON_CACHE_DIR": str(default_cache_dir() / "triton"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder), *names],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [Wrapper(*json.loads((folder / name).read_text())) for name in names]


def _split(arguments: str) -> list[str]:
    """Arguments of a call in C++."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(arguments):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(arguments[start:index].strip())
            start = index + 1
    return [*parts, arguments[start:].strip()]


def _evaluate(text: str, sizes: Mapping[str, int]) -> int:
    """A number that generated C++ computes from sizes."""
    python = re.sub(r"static_cast<\w+>", "", text).replace("std::", "").replace("c10::div_floor_integer", "floordiv")
    python = re.sub(r"\b(\d+)L\b", r"\1", python)
    names = {"min": min, "max": max, "floordiv": lambda a, b: a // b, **sizes}
    result = eval(python, {"__builtins__": {}}, names)
    assert isinstance(result, int), text
    return int(result)
