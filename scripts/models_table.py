"""Makes docs/models.md: exports every model of the registry and of the zoo, runs it, and writes the table.

    python scripts/models_table.py export --target host --target sm_90   # anywhere; no GPU
    python scripts/models_table.py run --target host                     # here
    python scripts/models_table.py run --target sm_90 --program PATH     # on a GPU machine
    python scripts/models_table.py render                                # docs/models.md from docs/models/*.json

For the GPU machine, copy out/models there, or export there (``--jobs N``: N models at a time). ``run`` needs PyTorch
and, as ``--program``, the built examples/cpp/run_session; it does not need the models. A cell without a result stays
empty.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import pathlib
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

if TYPE_CHECKING:
    from examples.export import ExportRecord

PROGRAMS = ROOT / "out" / "models"
RESULTS = ROOT / "docs" / "models"
PAGE = ROOT / "docs" / "models.md"

INTRO = """# Models

Every model of `examples/models.py` and `examples/zoo`, exported without touching a GPU and run.
`scripts/models_table.py` writes this page from `docs/models/*.json`; an empty cell has not been run.

- Error: the norm of the difference over the norm of PyTorch's output in the same dtype on the CPU, the largest over the
  calls of the session. In brackets, for low precision: the error against fp32, and eager's own.
- Bounds: fp32 1e-4; bf16 and fp16 2e-2, and no more than 1.5 times eager's own error against fp32.
- 2026-11-21: the errors of bert, decoder and llama in fp32 on the GPU are of an earlier export of the day.
- Attention: the kernels of etcuda's own that the program holds, found by looking into the file; empty where attention
  is computed by its formula (the host, fp32) or the model has none.
- qwen3 and gemma3 are those of `transformers` over a static KV cache, prefill and decode in one program; gemma3 has a
  layer with a sliding window shorter than the session. Their masks are computed from positions and never read.
- Export seconds: from ExportedProgram to file, with the kernel cache as it was, several exports at a time for the zoo.
  On `host` a kernel is a generated C++ function.
"""
ZOO = """## The zoo

Models of `transformers` (small and random), of `torchvision` (as they are, with random weights, at small images) and
two of our own, one method each. MoE models choose their experts in the graph.
"""


def write_json(path: pathlib.Path, value: object) -> None:
    """Writes sorted, indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in ``path``; an empty one where there is no such file."""
    if not path.is_file():
        return {}
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def export_one(name: str, target: str) -> ExportRecord:
    """Writes one program, and the bundle if it is not there, to out/models."""
    import torch

    from examples.bundle import make_bundle, save_bundle
    from examples.export import export_case

    torch.set_num_threads(1)
    if not (PROGRAMS / f"{name}.pt").is_file():
        save_bundle(make_bundle(name), PROGRAMS / f"{name}.pt")
    return export_case(name, target, PROGRAMS / f"{name}-{target}.pte")


def export(names: list[str], targets: list[str], jobs: int) -> int:
    """Writes programs and bundles to out/models, facts to docs/models/export-<target>.json; 1 if an export failed."""
    import torch

    PROGRAMS.mkdir(parents=True, exist_ok=True)
    failed = 0
    for target in targets:
        facts = RESULTS / f"export-{target}.json"
        records = read_json(facts).get("models", {})
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for name, done in {name: pool.submit(export_one, name, target) for name in names}.items():
                try:
                    record = done.result()
                except Exception as error:
                    failed = 1
                    print(f"{name} for {target}: {type(error).__name__}: {str(error)[:400]}", flush=True)
                    continue
                records[name] = dataclasses.asdict(record)
                words = f"{record.partitions} partitions, {record.seconds:.1f} s, {record.nbytes} bytes"
                print(f"{name} for {target}: {words}", flush=True)
                write_json(facts, {"torch": torch.__version__, "models": records})
    return failed


def run(names: list[str], target: str, program: pathlib.Path | None) -> int:
    """Runs the programs of ``target``; writes docs/models/run-<target>.json; 1 if a model is out of bounds."""
    import torch

    from examples.bundle import load_bundle
    from examples.cpp.session import run_calls

    device = "the CPU" if target == "host" else torch.cuda.get_device_name()
    path = RESULTS / f"run-{target}.json"
    results, failed = read_json(path).get("models", {}), 0
    for name in names:
        model = PROGRAMS / f"{name}-{target}.pte"
        if not model.is_file():
            print(f"{name}: there is no {model.name}", flush=True)
            failed += 1
            continue
        bundle = load_bundle(PROGRAMS / f"{name}.pt")
        try:
            if program is None:
                from examples.running import Session

                outputs = Session(model).run(bundle.calls)
            else:
                outputs = run_calls(program, model, bundle.calls, like=bundle.eager)
        except RuntimeError as error:
            print(f"{name} on {device}: {str(error)[-400:]}", flush=True)
            results.pop(name, None)
            failed += 1
            continue
        verdict = bundle.verdict(outputs)
        failed += not verdict.passed
        results[name] = {**dataclasses.asdict(verdict), "passed": verdict.passed}
        print(f"{name} on {device}: {verdict.error:.1e} {'ok' if verdict.passed else 'OUT OF BOUNDS'}", flush=True)
        write_json(path, {"device": device, "torch": torch.__version__, "models": results})
    return min(failed, 1)


def cell(result: dict[str, Any] | None) -> str:
    """One error cell."""
    if result is None:
        return ""
    text = f"{result['error']:.1e}"
    if result["eager_error_fp32"] > 0:
        text += f" ({result['error_fp32']:.1e}, eager {result['eager_error_fp32']:.1e})"
    return text if result["passed"] else f"**{text}**"


# Partitions that a model of the zoo may have.
MOST = {"host": 2, "sm_90": 1}


def missing(zoo: list[str], target: str) -> list[str]:
    """Sentences on models of the zoo that are not there, in too many partitions, or out of bounds."""
    exports = read_json(RESULTS / f"export-{target}.json").get("models", {})
    runs = read_json(RESULTS / f"run-{target}.json").get("models", {})
    found = []
    for name in zoo:
        if name not in exports or name not in runs:
            found.append(f"{name} for {target}: not exported, or not run")
        elif exports[name]["partitions"] > MOST.get(target, 1):
            found.append(f"{name} for {target}: {exports[name]['partitions']} partitions")
        elif not runs[name]["passed"]:
            found.append(f"{name} for {target}: out of bounds")
    return found


def render(registry: list[str], zoo: list[str], targets: list[str]) -> int:
    """Writes docs/models.md; 1 if a model of the zoo is missing or is not what it should be."""
    parts = [INTRO, *table(registry, targets), "", ZOO, *table(zoo, targets)]
    PAGE.write_text("\n".join(parts) + "\n")
    print(f"wrote {PAGE}")
    lacking = [sentence for target in targets for sentence in missing(zoo, target)]
    print("\n".join(lacking))
    return min(len(lacking), 1)


def table(names: list[str], targets: list[str]) -> list[str]:
    """Lines of the table of some models."""
    runs = {target: read_json(RESULTS / f"run-{target}.json") for target in targets}
    devices = [f"error on {runs[target].get('device', target)}" for target in targets]
    heading = [
        "model",
        "target",
        "delegated / all nodes",
        "partitions",
        "kernels",
        "attention",
        "export s",
        ".pte MB",
        *devices,
    ]
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for name in names:
        for target in targets:
            record = read_json(RESULTS / f"export-{target}.json").get("models", {}).get(name)
            facts = [""] * 6
            if record is not None:
                nodes, size = f"{record['delegated']} / {record['nodes']}", f"{record['nbytes'] / 1e6:.2f}"
                kernels = [str(record["partitions"]), str(record["kernels"]), ", ".join(record.get("attention", ()))]
                facts = [nodes, *kernels, f"{record['seconds']:.1f}", size]
            errors = [cell(runs[t].get("models", {}).get(name)) if t == target else "" for t in targets]
            lines.append("| " + " | ".join([name, target, *facts, *errors]) + " |")
    return lines


def main() -> int:
    """Command line."""
    from examples.models import CASES
    from examples.zoo.registry import ZOO_CASES

    every = [*CASES, *ZOO_CASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("export", "run", "render"))
    parser.add_argument("--target", action="append", help="may be repeated; host and sm_90 where left out")
    parser.add_argument("--model", action="append", choices=every, help="may be repeated; all where left out")
    parser.add_argument("--program", type=pathlib.Path, help="run_session; without it, the Python runtime")
    parser.add_argument("--jobs", type=int, default=1, help="exports at a time")
    parser.add_argument("--zoo", action="store_true", help="the models of the zoo alone")
    arguments = parser.parse_args()
    targets: list[str] = arguments.target or ["host", "sm_90"]
    names: list[str] = arguments.model or (list(ZOO_CASES) if arguments.zoo else every)
    if arguments.step == "export":
        return export(names, targets, arguments.jobs)
    if arguments.step == "render":
        return render(list(CASES), list(ZOO_CASES), targets)
    if len(targets) != 1:
        parser.error(f"run: expected one --target, got {targets}")
    return run(names, targets[0], arguments.program)


if __name__ == "__main__":
    sys.exit(main())
