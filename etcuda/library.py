"""Where the native library and the program lie: in an installed package, an editable install or a checkout.

Outside ``etcuda.runtime``, whose import loads the library and needs PyTorch: the program needs neither.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import MutableMapping

import etcuda
from etcuda.errors import RuntimeUnavailableError

LIBRARY_NAME = "libetcuda_runtime.so"
RUNNER_NAME = "executor_runner"
LLM_RUNNER_NAME = "llm_runner"
ENVIRONMENT = "ETCUDA_RUNTIME_LIBRARY"


def _roots() -> list[pathlib.Path]:
    # An editable install keeps native files in site-packages and Python files in the checkout.
    spec = importlib.util.find_spec("executorch")
    beside = [] if spec is None else [pathlib.Path(p).parent / "etcuda" for p in spec.submodule_search_locations or ()]
    return [root / "runtime" for root in dict.fromkeys([*map(pathlib.Path, etcuda.__path__), *beside])]


def _find(folder: str, name: str) -> pathlib.Path:
    candidates = [root / folder / name for root in _roots()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise RuntimeUnavailableError(
        f"{name} was not found; tried {tried}. Install etcuda with pip, or in a checkout run: "
        "cmake -S . -B build/dev -G Ninja && cmake --build build/dev && cmake --install build/dev"
    )


def find_library() -> pathlib.Path:
    """The path of the runtime library; the variable ``ETCUDA_RUNTIME_LIBRARY`` overrides the search.

    Raises:
        RuntimeUnavailableError: there is none.
    """
    override = os.environ.get(ENVIRONMENT)
    if override is None:
        return _find("lib", LIBRARY_NAME)
    path = pathlib.Path(override)
    if not path.is_file():
        raise RuntimeUnavailableError(f"{ENVIRONMENT} names {override}, which is not a file. Correct or unset it.")
    return path


def find_runner(name: str = RUNNER_NAME) -> pathlib.Path:
    """The path of the program ``executor_runner``, or of another one.

    Raises:
        RuntimeUnavailableError: there is none.
    """
    return _find("bin", name)


def find_headers() -> pathlib.Path:
    """The folder to include for ``<etcuda/session.h>``.

    Raises:
        RuntimeUnavailableError: there is none.
    """
    return _find("include", "etcuda/session.h").parents[1]


def find_cublaslt() -> pathlib.Path | None:
    """cuBLASLt of the ``nvidia-cublas`` packages that torch depends on, or None if they are not installed."""
    return _find_nvidia("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")


def find_cudnn() -> pathlib.Path | None:
    """cuDNN of the ``nvidia-cudnn`` packages that torch depends on, or None if they are not installed."""
    return _find_nvidia("cudnn/lib/libcudnn.so.9")


def name_libraries(environment: MutableMapping[str, str]) -> None:
    """Sets, for a program that searches no packages, the variables that name libraries, where they are not set."""
    for variable, path in (("ETCUDA_CUBLASLT", find_cublaslt()), ("ETCUDA_CUDNN", find_cudnn())):
        if path is not None:
            environment.setdefault(variable, str(path))


def _find_nvidia(*candidates: str) -> pathlib.Path | None:
    spec = importlib.util.find_spec("nvidia")
    if spec is None:
        return None
    for root in spec.submodule_search_locations or ():
        for relative in candidates:
            path = pathlib.Path(root) / relative
            if path.is_file():
                return path
    return None
