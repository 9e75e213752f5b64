"""Compiles CUDA C++ with the NVRTC that torch brings; a program of its own, which imports nothing of this package.

Standard input: JSON with the source, its name, headers by name, and options. Standard output: PTX. Standard error and
exit status 1: why there is none.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> int:
    """Compiles what standard input says."""
    from cuda.bindings import nvrtc

    done = nvrtc.nvrtcResult.NVRTC_SUCCESS

    def check(result: tuple[Any, ...]) -> Any:
        if result[0] != done:
            raise SystemExit(f"NVRTC answered {result[0].name}. Is it the one of torch?")
        return result[1] if len(result) == 2 else None

    request = json.load(sys.stdin)
    headers = request["headers"]
    program = check(
        nvrtc.nvrtcCreateProgram(
            request["source"].encode(), request["name"].encode(), len(headers),
            [text.encode() for text in headers.values()], [name.encode() for name in headers],
        )
    )  # fmt: skip
    options = [each.encode() for each in request["options"]]
    (failed,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if failed != done:
        log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
        check(nvrtc.nvrtcGetProgramLog(program, log))
        print(log.rstrip(b"\0").decode(errors="replace"), file=sys.stderr)
        return 1
    ptx = b" " * check(nvrtc.nvrtcGetPTXSize(program))
    check(nvrtc.nvrtcGetPTX(program, ptx))
    sys.stdout.write(ptx.rstrip(b"\0").decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
