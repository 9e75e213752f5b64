"""``python -m benchmarks``: measure on a GPU, or render pages from what was measured."""

from __future__ import annotations

import argparse
import pathlib
import sys


def main() -> int:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the native timing program")
    build.add_argument("--output", type=pathlib.Path, default=pathlib.Path("out/bench/bench_calls"))
    calls = commands.add_parser("calls", help="per-call overhead and latency; wants a GPU")
    calls.add_argument("--runner", type=pathlib.Path, default=pathlib.Path("out/bench/bench_calls"))
    calls.add_argument("--results", type=pathlib.Path, default=None, help="where to write; default benchmarks/results")
    commands.add_parser("render", help="make the pages and plots from the JSON in benchmarks/results")
    arguments = parser.parse_args()

    from benchmarks import report
    from benchmarks.compile_native import compile_native

    if arguments.command == "build":
        return compile_native("bench_calls.cpp", arguments.output)
    if arguments.command == "render":
        report.render_calls()
        return 0
    from benchmarks.calls import run
    from examples.running import gpu_arch

    arch = gpu_arch()
    if arch is None:
        print("benchmarks: expected an NVIDIA GPU, found none; run this on a machine that has one.", file=sys.stderr)
        return 2
    report.save_calls(run(arguments.runner, arch), arguments.results or report.RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
