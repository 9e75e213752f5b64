"""The console scripts ``executor_runner`` and ``llm_runner``: each becomes the native program of its name. They need no
PyTorch."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from etcuda.errors import RuntimeUnavailableError
from etcuda.library import LLM_RUNNER_NAME, RUNNER_NAME, find_runner, name_libraries

# The program's own code for "could not be loaded".
_LOAD_FAILED = 3


def main() -> NoReturn:
    """Replaces this process by ``executor_runner``, with the same arguments."""
    _become(RUNNER_NAME)


def llm_main() -> NoReturn:
    """Replaces this process by ``llm_runner``, with the same arguments."""
    _become(LLM_RUNNER_NAME)


def _become(name: str) -> NoReturn:
    try:
        runner = find_runner(name)
    except RuntimeUnavailableError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(_LOAD_FAILED)
    name_libraries(os.environ)
    os.execv(runner, [str(runner), *sys.argv[1:]])


if __name__ == "__main__":
    main()
