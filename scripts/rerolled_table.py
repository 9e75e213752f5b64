"""Makes docs/rerolled.md: models with layers, exported with repeated layers compiled once and each by itself.

    python scripts/rerolled_table.py run --target host --program PATH    # exports both, runs both, compares bits
    python scripts/rerolled_table.py run --target sm_90 --program PATH   # the same on a GPU machine
    python scripts/rerolled_table.py render                              # docs/rerolled.md from docs/models/*.json

``--program`` is the built examples/cpp/run_session. Repeats of these small models save less than is worth a part of
its own, so the bound is lowered here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

PROGRAMS = ROOT / "out" / "rerolled"
RESULTS = ROOT / "docs" / "models"
PAGE = ROOT / "docs" / "rerolled.md"
LEAST_SAVED = 8

# Times the layers that the models have elsewhere.
DEEPER = 4

INTRO = """# Layers compiled once

Models of `examples/models.py` with more than one layer, here with four times as many, exported twice: with what repeats
compiled once, and with `CompileOptions(reroll=False)`. Both ran the calls of the model's session, and every byte of
every result was compared. `scripts/rerolled_table.py` writes this page; an empty cell has not been run. The bound on
what a repeat has to save (docs/decisions.md, 46) was lowered for it, since these models are small.

- Images: of the program with repeats, all methods together. As many as methods means that nothing repeats behind
  itself (of two layers the first often holds what both need), or that the parts could not hand over what they would
  have to, and the graph is compiled as one.
"""


def names() -> list[str]:
    """Models of the registry with more than one layer."""
    from examples.models import CASES

    return [name for name in CASES if not name.startswith("mlp")]


def compare(name: str, target: str, program: pathlib.Path) -> dict[str, Any]:
    """Exports a model both ways, runs it, and says whether all bits are equal.

    Raises:
        RuntimeError: a program does not run.
    """
    import torch

    from etcuda import CompileOptions
    from etcuda.backend.inspect import inspect_program
    from etcuda.passes.repeats import find
    from examples.bundle import make_bundle
    from examples.cpp.session import run_calls
    from examples.depth import deeper
    from examples.export import export_case

    torch.set_num_threads(1)
    find.MIN_SAVED_CALLS = LEAST_SAVED
    with deeper(DEEPER):
        bundle = make_bundle(name)
    results, images = [], []
    for reroll in (True, False):
        path = PROGRAMS / f"{name}-{target}-{'parts' if reroll else 'whole'}.pte"
        with deeper(DEEPER):
            export_case(name, target, path, CompileOptions(progress=False, reroll=reroll))
        delegates = [each for method in inspect_program(path).methods for each in method.delegates]
        images.append(sum(len(each.images) for each in delegates))
        results.append(run_calls(program, path, bundle.calls, like=bundle.eager))
        path.unlink()
    equal = all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(*map(_flat, results), strict=True)
    )
    return {"images": images[0], "images_whole": images[1], "equal": equal, "calls": len(results[0])}


def _flat(tensors: list[Any]) -> list[Any]:
    return [tensor.contiguous().reshape(-1) for tensor in tensors]


def run(chosen: list[str], target: str, program: pathlib.Path, jobs: int) -> int:
    """Compares models; docs/models/rerolled-<target>.json is written after each. 1 if bits differ or one failed."""
    import torch

    PROGRAMS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"rerolled-{target}.json"
    records = json.loads(path.read_text())["models"] if path.is_file() else {}
    device = "the CPU" if target == "host" else torch.cuda.get_device_name()
    failed = 0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(compare, name, target, program): name for name in chosen}
        for done in as_completed(futures):
            name = futures[done]
            try:
                records[name] = done.result()
            except Exception as error:
                failed = 1
                print(f"{name} for {target}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            failed |= not records[name]["equal"]
            print(name, records[name], flush=True)
            value = {"device": device, "torch": torch.__version__, "models": records}
            path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    return failed


def render(chosen: list[str], targets: list[str]) -> int:
    """Writes the page; 1 if bits of a model differ."""
    lines = [INTRO]
    known = {}
    for target in targets:
        path = RESULTS / f"rerolled-{target}.json"
        known[target] = json.loads(path.read_text()) if path.is_file() else {"models": {}}
        where = f"{known[target].get('device')}, torch {known[target].get('torch')}"
        lines += [f"- {target}: {where}" if path.is_file() else f"- {target}: not run"]
    lines += ["", "| model | " + " | ".join(f"images, {t} | bits, {t}" for t in targets) + " |"]
    lines += ["|---" * (1 + 2 * len(targets)) + "|"]
    failed = 0
    for name in chosen:
        cells = []
        for target in targets:
            record = known[target]["models"].get(name)
            failed |= record is not None and not record["equal"]
            cells += (
                ["", ""] if record is None else [str(record["images"]), "equal" if record["equal"] else "**differ**"]
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    PAGE.write_text("\n".join(lines) + "\n")
    return failed


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("run", "render"))
    parser.add_argument("--target", choices=("host", "sm_90"), default="host")
    parser.add_argument("--model", action="append", help="may be repeated; all where left out")
    parser.add_argument("--program", type=pathlib.Path, help="run_session")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    arguments = parser.parse_args()
    if arguments.step == "render":
        return render(names(), ["host", "sm_90"])
    if arguments.program is None:
        parser.error("run: expected --program, the built examples/cpp/run_session")
    return run(arguments.model or names(), arguments.target, arguments.program, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
