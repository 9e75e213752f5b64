"""``python -m benchmarks.whole_models``: export anywhere, measure on a GPU, or make the page."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from benchmarks.compile_native import compile_native
from benchmarks.report import RESULTS, environment
from benchmarks.whole_models.export import export_model
from benchmarks.whole_models.report import render
from benchmarks.whole_models.shapes import SHAPES

PROGRAMS = pathlib.Path("out/whole_models")


def run(
    names: list[str], programs: pathlib.Path, out: pathlib.Path, library: pathlib.Path, peers: list[str], prompts: bool
) -> int:
    """Measures models one after another, torch.compile beside ``peers``, then the kernels of each; ``out`` is written
    after each model.

    Returns:
        1 if one could not be measured.
    """
    import torch

    from benchmarks.whole_models.measure import Row, measure, profiled
    from benchmarks.whole_models.peer import measure_peer

    has_gpu = torch.cuda.is_available()
    env = environment() if has_gpu else {"gpu": "no GPU", "torch": torch.__version__}
    value: dict[str, Any] = {"environment": env, "rows": [], "exports": {}}
    rows: list[Row] = []
    failed = 0

    def write() -> None:
        value["rows"] = [dataclasses.asdict(row) for row in rows]
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(partial, out)

    for name in names:
        exported = programs / f"{name}-export.json"
        value["exports"][name] = json.loads(exported.read_text())
        try:
            found = measure(name, programs, library, has_gpu)
            found += [measure_peer(name, programs, prompts)] if name in peers and has_gpu else []
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = 1
            continue
        for row in found:
            print(row.model, row.engine, row.decode_us, row.prompt_us, f"error {row.error:.1e}", flush=True)
        rows += found
        write()
    for place, row in enumerate(rows if has_gpu else ()):
        if row.engine.startswith("etcuda"):
            rows[place] = profiled(row, programs, library)
            write()
    return failed


def main() -> int:
    """Runs one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="export models with random weights; needs no GPU")
    exporting.add_argument("--target", default="sm_90")
    exporting.add_argument("--no-weights", action="store_true", help="leave them to `etcuda weights` elsewhere")
    exporting.add_argument("--device-sampling", action="store_true", help="with generate_step")
    measuring = commands.add_parser("run", help="measure what was exported")
    measuring.add_argument("--out", type=pathlib.Path, default=RESULTS / "whole_models.json")
    measuring.add_argument("--library", type=pathlib.Path, help="the compiled native/session.cpp")
    measuring.add_argument("--peers", nargs="*", choices=tuple(SHAPES), help="with torch.compile; all where left out")
    measuring.add_argument("--no-peer-prompts", action="store_true", help="torch.compile on steps alone")
    for command in (exporting, measuring):
        command.add_argument("--models", nargs="+", choices=tuple(SHAPES), default=["llama-3-8b-int4"])
        command.add_argument("--programs", type=pathlib.Path, default=PROGRAMS)
    page = commands.add_parser("render", help="make whole_models.md and whole_models.png")
    page.add_argument("--source", type=pathlib.Path, default=RESULTS / "whole_models.json")
    page.add_argument("--folder", type=pathlib.Path, default=RESULTS)
    page.add_argument("--bandwidth", type=float, default=4.36e12, help="bytes a second of a plain read on the GPU")
    arguments = parser.parse_args()
    if arguments.command == "render":
        render(arguments.source, arguments.folder, arguments.bandwidth)
        return 0
    if arguments.command == "export":
        for name in arguments.models:
            export_model(
                name, arguments.target, arguments.programs, not arguments.no_weights, arguments.device_sampling
            )
        return 0
    library = arguments.library or arguments.programs / "session.so"
    if not library.is_file() and compile_native("session.cpp", library, shared=True):
        return 1
    return run(
        arguments.models,
        arguments.programs,
        arguments.out,
        library,
        arguments.models if arguments.peers is None else arguments.peers,
        not arguments.no_peer_prompts,
    )


if __name__ == "__main__":
    sys.exit(main())
