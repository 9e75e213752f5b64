"""Drives ``run_session``: writes the inputs as raw files, runs the program, reads the outputs back."""

from __future__ import annotations

import os
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from examples.models import Call

_NAMES = {
    torch.bfloat16: "bfloat16",
    torch.bool: "bool",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.int8: "int8",
    torch.uint8: "uint8",
}


def to_bytes(tensor: Tensor) -> bytes:
    """The elements in row-major order, little endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, like: Tensor) -> Tensor:
    """The inverse, for a tensor of the shape and dtype of ``like``.

    Raises:
        ValueError: the number of bytes is not that of such a tensor.
    """
    expected = like.numel() * like.element_size()
    if len(data) != expected:
        raise ValueError(f"expected {expected} bytes for {list(like.shape)} {like.dtype}, got {len(data)}.")
    if not data:
        return torch.empty(like.shape, dtype=like.dtype)
    return torch.frombuffer(bytearray(data), dtype=like.dtype).reshape(like.shape)


def write_session(
    folder: pathlib.Path, calls: list[Call], sessions: Sequence[str | None] | None = None
) -> pathlib.Path:
    """Writes the calls into ``folder``; returns the session file.

    Args:
        folder: where the inputs go too.
        calls: what to run.
        sessions: one for each call, the name of the session that it runs in; None: the state that all programs have.
    """
    lines = []
    for index, call in enumerate(calls):
        name = sessions[index] if sessions else None
        words = [call.method] if name is None else [f"@{name}", call.method]
        for place, tensor in enumerate(call.inputs):
            path = folder / f"in_{index}_{place}.bin"
            path.write_bytes(to_bytes(tensor))
            words.append(f"{_NAMES[tensor.dtype]}:{'x'.join(map(str, tensor.shape))}:{path}")
        lines.append(" ".join(words))
    session = folder / "session.txt"
    session.write_text("\n".join(lines) + "\n")
    return session


def run_calls(
    program: pathlib.Path,
    model: pathlib.Path,
    calls: list[Call],
    like: list[Tensor],
    sessions: Sequence[str | None] | None = None,
) -> list[Tensor]:
    """First output of each call, run in order in one process of ``program``.

    Args:
        program: the built ``run_session``.
        model: the ``.pte`` file.
        calls: what to run.
        like: one tensor per call, of its first output's shape and dtype.
        sessions: as for ``write_session``.

    Raises:
        RuntimeError: the program failed; the message holds what it printed.
    """
    return [outputs[0] for outputs in run_all_outputs(program, model, calls, [[tensor] for tensor in like], sessions)]


def run_all_outputs(
    program: pathlib.Path,
    model: pathlib.Path,
    calls: list[Call],
    like: list[list[Tensor]],
    sessions: Sequence[str | None] | None = None,
) -> list[list[Tensor]]:
    """Outputs of each call, as many as ``like`` has for it: tensors of their shapes and dtypes.

    Raises:
        RuntimeError: as for ``run_calls``.
        ValueError: an output has another number of bytes than the tensor in ``like``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = [os.fspath(program), os.fspath(model), os.fspath(write_session(folder, calls, sessions)), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return [
            [
                from_bytes((folder / f"{index}{f'_{place}' if place else ''}.bin").read_bytes(), tensor)
                for place, tensor in enumerate(tensors)
            ]
            for index, tensors in enumerate(like)
        ]
