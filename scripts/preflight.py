"""Checks, before anything is installed, what pip cannot install: the Python version, venv, a C++ compiler, disk space.

Runs under the system's Python and needs nothing beyond it. Exits with 1 and one line per problem.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import sys

FREE_GIB = 20


def problems() -> list[str]:
    """One sentence per thing that is missing, with what to do."""
    found = []
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        found.append(
            f"Python: expected 3.11 or 3.12, got {version} ({sys.executable}). Pass one: make PYTHON=python3.12 ..."
        )
    if importlib.util.find_spec("ensurepip") is None:
        found.append("venv: the module ensurepip is missing. Install it (Debian, Ubuntu: apt install python3-venv).")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        found.append(f"platform: expected Linux on x86_64, got {platform.system()} on {platform.machine()}.")
    found += compiler_problems(os.environ.get("CXX", "").strip() or "g++")
    free = shutil.disk_usage(".").free / 2**30
    if free < FREE_GIB and not os.path.isdir(".venv"):
        found.append(f"disk: expected {FREE_GIB} GiB free for two PyTorch environments, got {free:.0f} GiB.")
    return found


def compiler_problems(command: str) -> list[str]:
    """What is wrong with a C++ compiler's command, such as ``g++`` or ``ccache g++``."""
    try:
        compiler = shlex.split(command)[0]
    except ValueError as error:
        return [
            f"C++ compiler: CXX={command!r}: expected a command, as in 'g++' or 'ccache g++', got one that a shell "
            f"could not read ({error}). Correct or unset CXX."
        ]
    if shutil.which(compiler) is None:
        return [
            f"C++ compiler: {compiler} is not on PATH; expected g++ 11 or newer, for the runtime and for the code of "
            "exported models. Install it (Debian, Ubuntu: apt install g++) or set CXX to a compiler's command, such as "
            "'g++-12' or 'ccache g++'."
        ]
    return []


def main() -> int:
    """Prints the problems; the number of them, as far as an exit status goes."""
    found = problems()
    for problem in found:
        print(f"preflight: {problem}", file=sys.stderr)
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
