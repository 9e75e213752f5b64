"""Writes a program to disk: whole files or none, and an exception when it cannot be written."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import TYPE_CHECKING

from etcuda.backend.state import check_program
from etcuda.errors import SaveError

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager


def save_program(program: ExecutorchProgramManager, path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Writes ``program`` to ``path``, and its external weights, if any, beside it as ``<ptd_name>.ptd``.

    Files are written to a temporary folder beside ``path`` and renamed, so that a reader sees a whole file or the old
    one. ExecuTorch's own ``program.save`` logs a failed write and returns.

    Returns:
        The files written, the program last.

    Raises:
        SaveError: a file cannot be written.
        StateError: methods name a buffer that they cannot share.
    """
    check_program({method: program.exported_program(method) for method in program.methods})
    target = pathlib.Path(path)
    if target.is_dir():
        raise SaveError(f"{target}: expected the path of a file, got a folder. Append a file name.")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".etcuda-") as name:
            folder = pathlib.Path(name)
            program.write_tensor_data_to_file(name)
            weights = sorted(folder.iterdir())
            with open(folder / "program", "wb") as file:
                program.write_to_file(file)
            written = [each.rename(target.with_name(each.name)) for each in weights]
            (folder / "program").replace(target)
            return [*written, target]
    except OSError as error:
        raise SaveError(
            f"{target}: expected a path that can be written, got: {error.strerror or error}. "
            "Check that the folder exists, that you may write there, and that there is room."
        ) from error
