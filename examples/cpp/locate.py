"""Prints, for CMake, the folder of the executorch package, the file of etcuda's runtime library, and the folder of its
headers."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))


def executorch_root() -> pathlib.Path:
    """The folder that holds ExecuTorch's libraries.

    Raises:
        ModuleNotFoundError: executorch is not installed, or is not the wheel with the libraries.
    """
    spec = importlib.util.find_spec("executorch")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (pathlib.Path(folder) / "lib" / "libexecutorch.so").is_file():
            return pathlib.Path(folder)
    raise ModuleNotFoundError(
        f"executorch with lib/libexecutorch.so: not installed for {sys.executable}. Install 1.5.1."
    )


if __name__ == "__main__":
    from etcuda.library import find_headers, find_library

    print(f"{executorch_root()};{find_library()};{find_headers()}")
