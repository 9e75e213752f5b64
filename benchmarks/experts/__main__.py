"""``python -m benchmarks.experts``: measure on a GPU, or make the page from what was measured."""

from __future__ import annotations

import argparse
import math
import pathlib
import sys

import torch

from benchmarks.experts import report
from benchmarks.experts.cells import CELLS, FEW, MANY, MODELS, WEIGHTS
from benchmarks.experts.run import run
from benchmarks.experts.stages import print_stages

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"


def main() -> int:
    """Runs one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run", help="measure; wants an NVIDIA GPU")
    measure.add_argument("--out", type=pathlib.Path, default=RESULTS / "experts.json")
    measure.add_argument("--budget-s", type=float, default=math.inf, help="seconds after which no cell is started")
    stages = commands.add_parser("stages", help="time each kernel of many tokens by itself; wants an NVIDIA GPU")
    for chosen in (measure, stages):
        chosen.add_argument("--model", choices=[each.name for each in MODELS], help="of one model alone")
        chosen.add_argument("--weights", choices=WEIGHTS, help="of one kind alone")
        chosen.add_argument("--tokens", type=int, nargs="+", help="of so many tokens alone")
    page = commands.add_parser("render", help="make experts.md")
    page.add_argument("--source", type=pathlib.Path, default=RESULTS / "experts.json")
    page.add_argument("--folder", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "render":
        report.render(arguments.source, arguments.folder)
        return 0
    if not torch.cuda.is_available():
        print("benchmarks.experts: expected an NVIDIA GPU, found none; run this where there is one.", file=sys.stderr)
        return 2
    cells = [
        cell
        for cell in CELLS
        if arguments.model in (None, cell.model.name)
        and arguments.weights in (None, cell.weights)
        and (arguments.tokens is None or cell.tokens in arguments.tokens)
    ]
    if not cells:
        print(f"benchmarks.experts: expected tokens among {[*FEW, *MANY]}, got {arguments.tokens}.", file=sys.stderr)
        return 2
    if arguments.command == "stages":
        print_stages(cells)
    else:
        run(arguments.out, arguments.budget_s, cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
