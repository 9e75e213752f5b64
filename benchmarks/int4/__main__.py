"""``python -m benchmarks.int4``: measure on a GPU, or make the page from what was measured."""

from __future__ import annotations

import argparse
import math
import pathlib
import sys

import torch

from benchmarks.int4 import report
from benchmarks.int4.cells import KINDS
from benchmarks.int4.engines import ENGINES
from benchmarks.int4.run import run

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"


def main() -> int:
    """Runs one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int4", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run", help="measure; wants an NVIDIA GPU")
    measure.add_argument("--out", type=pathlib.Path, default=RESULTS / "int4.json")
    measure.add_argument("--budget-s", type=float, default=math.inf, help="seconds after which no cell is started")
    measure.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES))
    measure.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="sections of the page")
    page = commands.add_parser("render", help="make int4.md and int4.png")
    runs = [RESULTS / "int4.json"]
    page.add_argument("--sources", type=pathlib.Path, nargs="+", default=runs, help="runs; later ones replace sections")
    page.add_argument("--folder", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "render":
        report.render(arguments.sources, arguments.folder)
        return 0
    if not torch.cuda.is_available():
        print("benchmarks.int4: expected an NVIDIA GPU, found none; run this where there is one.", file=sys.stderr)
        return 2
    run(arguments.out, arguments.budget_s, arguments.engines, arguments.kinds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
