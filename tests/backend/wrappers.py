"""The code that is generated for a GPU that is not here, and which kernels it launches for a number of tokens."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from torch.export import ExportedProgram

from etcuda.backend.worker.client import default_cache_dir
from etcuda.backend.worker.job import JobRequest, write_request
from etcuda.options import CompileOptions
from etcuda.target import TARGETS

# Stands in for a device for all of its process, as the compile worker does.
_SCRIPT = """
import hashlib, json, pathlib, sys
import torch
from etcuda.backend.inductor import capture, device, kernel_cache
from etcuda.backend.worker.job import read_request
from etcuda.backend.worker.move import move_to_device

for index, folder in enumerate(map(pathlib.Path, sys.argv[1:])):
    request = read_request(folder)
    if not index:
        device.install(request.target)
        kernel_cache.install()
    moved = move_to_device(request.program, torch.device("cuda", 0), request.tied)
    code = capture.generate(moved.module, moved.inputs, request.target, False, lambda *_: None)
    (folder / "wrapper.cpp").write_text(code.wrapper)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in code.cubins.items()}
    (folder / "cubins.json").write_text(json.dumps(digests))
"""


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """Generated C++, and the digests of the kernels that it launches."""

    text: str
    cubins: Mapping[str, str]

    @property
    def body(self) -> str:
        """The function that a call of the program runs."""
        return self.text.split("::run_impl(")[-1]

    def launches(self, **sizes: int) -> list[tuple[str, tuple[int, ...]]]:
        """Digests of the kernels and their grids, in order, those that are not empty, for values of its symbols."""
        found = []
        for name, arguments in re.findall(r"^ *call_(\w+)\((.*)\);$", self.body, re.MULTILINE):
            parts = _split(arguments)
            place = parts.index("this->device_idx_")
            grid = tuple(_evaluate(part, sizes) for part in parts[place - 3 : place])
            if all(grid):
                found.append((self.cubins[name], grid))
        return found


def generate(programs: Sequence[ExportedProgram], folder: pathlib.Path) -> list[Wrapper]:
    """Code for sm_90 of programs after the passes."""
    folders = [folder / str(index) for index in range(len(programs))]
    for each, program in zip(folders, programs, strict=True):
        each.mkdir()
        write_request(each, JobRequest(program, TARGETS["sm_90"], CompileOptions(), {}))
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
        "TRITON_CACHE_DIR": str(default_cache_dir() / "triton"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *map(str, folders)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [
        Wrapper((each / "wrapper.cpp").read_text(), json.loads((each / "cubins.json").read_text())) for each in folders
    ]


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
    return result
