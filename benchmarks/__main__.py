"""``python -m benchmarks``: measure on a GPU, or render pages from what was measured."""

from __future__ import annotations

import argparse
import pathlib
import subprocess
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

    if arguments.command == "build":
        return build_runner(arguments.output)
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


def build_runner(output: pathlib.Path) -> int:
    """Compiles ``bench_calls`` against the installed executorch and etcuda."""
    import executorch

    import etcuda.runtime

    root = pathlib.Path(next(iter(executorch.__path__)))
    library = etcuda.runtime.library_path()
    output.parent.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(__file__).resolve().parent / "native" / "bench_calls.cpp"
    portable = root / "include" / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    command = [
        "g++", "-std=c++17", "-O2", "-DC10_USING_CUSTOM_GENERATED_MACROS", str(source), "-o", str(output),
        f"-I{root / 'include'}", f"-I{portable}", f"-L{root / 'lib'}", "-Wl,--no-as-needed", str(library),
        "-lexecutorch", "-lexecutorch_kernels_optimized", f"-Wl,-rpath,{root / 'lib'}", f"-Wl,-rpath,{library.parent}",
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
