"""``python -m benchmarks.recurrent``: measure on a GPU, or make the page from what was measured."""

from __future__ import annotations

import argparse
import pathlib
import sys

import torch

from benchmarks.recurrent import report

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"


def main() -> int:
    """Runs one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run", help="measure; wants an NVIDIA GPU")
    measure.add_argument("--out", type=pathlib.Path, default=RESULTS / "recurrent.json")
    measure.add_argument("--peers", choices=("none", "fla", "all"), default="all", help="torch.compile takes minutes")
    measure.add_argument("--rings-alone", action="store_true", help="what it costs to keep states, and nothing else")
    page = commands.add_parser("render", help="make recurrent.md")
    page.add_argument("--source", type=pathlib.Path, default=RESULTS / "recurrent.json")
    page.add_argument("--folder", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "render":
        report.render(arguments.source, arguments.folder)
        return 0
    if not torch.cuda.is_available():
        print("benchmarks.recurrent: expected an NVIDIA GPU, found none; run this where there is one.", file=sys.stderr)
        return 2
    from benchmarks.recurrent.run import run

    run(arguments.out, arguments.peers, arguments.rings_alone)
    return 0


if __name__ == "__main__":
    sys.exit(main())
