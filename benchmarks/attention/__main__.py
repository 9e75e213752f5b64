"""``python -m benchmarks.attention``: measure on a GPU, or make the page from what was measured."""

from __future__ import annotations

import argparse
import math
import pathlib
import sys

import torch

from benchmarks.attention import end_to_end_report, report
from benchmarks.attention.cells import KINDS
from benchmarks.attention.end_to_end import MODELS, export
from benchmarks.attention.end_to_end_run import run as run_models
from benchmarks.attention.engines import ENGINES
from benchmarks.attention.run import run
from benchmarks.compile_native import compile_native

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"
PROGRAMS = pathlib.Path("out/attention")


def main() -> int:
    """Runs one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run", help="measure; wants an NVIDIA GPU")
    measure.add_argument("--out", type=pathlib.Path, default=RESULTS / "attention.json")
    measure.add_argument("--mode", choices=("cudagraph", "plain", "both"), default="both")
    measure.add_argument("--budget-s", type=float, default=math.inf, help="seconds after which no cell is started")
    measure.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES))
    measure.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="sections of the page")
    page = commands.add_parser("render", help="make attention.md and attention.png")
    page.add_argument("--source", type=pathlib.Path, default=RESULTS / "attention.json")
    page.add_argument("--folder", type=pathlib.Path, default=RESULTS)
    models = commands.add_parser("export_end_to_end", help="export whole models, with our kernels and without")
    models.add_argument("--target", default="sm_90")
    whole = commands.add_parser("end_to_end", help="measure whole models; wants an NVIDIA GPU")
    whole.add_argument("--out", type=pathlib.Path, default=RESULTS / "attention_end_to_end.json")
    whole.add_argument("--library", type=pathlib.Path, help="the compiled native/session.cpp; compiled where left out")
    for command in (models, whole):
        command.add_argument("--programs", type=pathlib.Path, default=PROGRAMS)
        command.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    if arguments.command == "render":
        report.render(arguments.source, arguments.folder)
        if (whole_models := arguments.source.with_name("attention_end_to_end.json")).is_file():
            end_to_end_report.render(whole_models, arguments.folder)
        return 0
    if arguments.command == "export_end_to_end":
        for name in arguments.models:
            export(name, arguments.target, arguments.programs)
        return 0
    if not torch.cuda.is_available():
        print("benchmarks.attention: expected an NVIDIA GPU, found none; run this where there is one.", file=sys.stderr)
        return 2
    if arguments.command == "end_to_end":
        library = arguments.library or PROGRAMS / "session.so"
        if arguments.library is None and compile_native("session.cpp", library, shared=True) != 0:
            return 1
        return run_models(arguments.models, arguments.programs, library, arguments.out)
    run(arguments.out, arguments.mode, arguments.budget_s, arguments.engines, arguments.kinds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
