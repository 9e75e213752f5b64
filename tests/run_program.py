"""Runs a program with executor_runner: no PyTorch in its process, so any release of PyTorch may read the results."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from torch import Tensor

from examples.cpp.session import from_bytes, to_bytes


def run_program(path: pathlib.Path, inputs: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of ``forward``.

    Args:
        path: the ``.pte`` file.
        inputs: its inputs.
        like: tensors of the shapes and dtypes of its outputs.

    Raises:
        AssertionError: the program failed; the message holds what it printed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = []
        for place, value in enumerate(inputs):
            files.append(folder / f"in_{place}")
            files[-1].write_bytes(to_bytes(value))
        shapes = ["x".join(map(str, value.shape)) or "scalar" for value in inputs]
        out = folder / "out"
        command = [
            sys.executable,
            "-m",
            "etcuda.runner",
            "--model_path",
            path,
            "--output_file",
            out,
            "--inputs",
            ",".join(map(str, files)),
        ]
        command += ["--input_shapes", ",".join(shapes)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs = [out] if len(like) == 1 else [folder / f"out.{place}" for place in range(len(like))]
        return [_read(each, value) for each, value in zip(outputs, like, strict=True)]


def _read(path: pathlib.Path, like: Tensor) -> Tensor:
    return from_bytes(path.read_bytes(), like) if like.numel() else like.clone()
