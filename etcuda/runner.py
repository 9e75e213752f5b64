"""The console script ``executor_runner``: becomes the native program of that name. It needs no PyTorch."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from etcuda.errors import RuntimeUnavailableError
from etcuda.library import find_cublaslt, find_runner

# The program's own code for "could not be loaded".
_LOAD_FAILED = 3


def main() -> NoReturn:
    """Replaces this process by the native runner, with the same arguments."""
    try:
        runner = find_runner()
    except RuntimeUnavailableError as error:
        print(f"executor_runner: {error}", file=sys.stderr)
        sys.exit(_LOAD_FAILED)
    cublaslt = find_cublaslt()
    if cublaslt is not None:
        os.environ.setdefault("ETCUDA_CUBLASLT", str(cublaslt))
    os.execv(runner, [str(runner), *sys.argv[1:]])


if __name__ == "__main__":
    main()
