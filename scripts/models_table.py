"""Makes docs/models.md: exports every model of the registry, runs it, and writes the table from the results.

    python scripts/models_table.py export --target host --target sm_90   # anywhere; no GPU
    python scripts/models_table.py run --target host                     # here
    python scripts/models_table.py run --target sm_90 --program PATH     # on a GPU machine
    python scripts/models_table.py render                                # docs/models.md from docs/models/*.json

For the GPU machine, copy out/models there. ``run`` needs PyTorch and, as ``--program``, the built
examples/cpp/run_session; it does not need the models. A cell without a result stays empty.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

PROGRAMS = ROOT / "out" / "models"
RESULTS = ROOT / "docs" / "models"
PAGE = ROOT / "docs" / "models.md"

INTRO = """# Models

Every model of `examples/models.py`, exported on a machine without a GPU and run.
`scripts/models_table.py` writes this page from `docs/models/*.json`; an empty cell has not been run.

- Error: the norm of the difference over the norm of PyTorch's output in the same dtype on the CPU, the largest over the
  calls of the session. In brackets, for low precision: the error against fp32, and eager's own.
- Bounds: fp32 1e-4; bf16 and fp16 2e-2, and no more than 1.5 times eager's own error against fp32.
- 2026-11-21: the errors of bert, decoder and llama in fp32 on the GPU are of an earlier export of the day.
- Attention: the kernels of etcuda's own that the program holds, found by looking into the file; empty where attention
  is computed by its formula (the host, fp32) or the model has none.
- qwen3 and gemma3 are those of `transformers` over a static KV cache, prefill and decode in one program; gemma3 has a
  layer with a sliding window shorter than the session. Their masks are computed from positions and never read.
- Export seconds: from ExportedProgram to file, with the kernel cache as it was. On `host` a kernel is a generated C++
  function.
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


def export(names: list[str], targets: list[str]) -> int:
    """Writes programs and bundles to out/models, facts to docs/models/export-<target>.json."""
    import torch

    from examples.bundle import make_bundle, save_bundle
    from examples.export import export_case

    PROGRAMS.mkdir(parents=True, exist_ok=True)
    for name in names:
        save_bundle(make_bundle(name), PROGRAMS / f"{name}.pt")
    for target in targets:
        facts = RESULTS / f"export-{target}.json"
        records = read_json(facts).get("models", {})
        for name in names:
            record = export_case(name, target, PROGRAMS / f"{name}-{target}.pte")
            records[name] = dataclasses.asdict(record)
            print(f"{name} for {target}: {record.seconds:.1f} s, {record.nbytes} bytes", flush=True)
            write_json(facts, {"torch": torch.__version__, "models": records})
    return 0


def run(names: list[str], target: str, program: pathlib.Path | None) -> int:
    """Runs the programs of ``target``; writes docs/models/run-<target>.json; 1 if a model is out of bounds."""
    import torch

    from examples.bundle import load_bundle
    from examples.cpp.session import run_calls

    device = "the CPU" if target == "host" else torch.cuda.get_device_name()
    path = RESULTS / f"run-{target}.json"
    results, failed = read_json(path).get("models", {}), 0
    for name in names:
        bundle = load_bundle(PROGRAMS / f"{name}.pt")
        model = PROGRAMS / f"{name}-{target}.pte"
        if program is None:
            from examples.running import Session

            outputs = Session(model).run(bundle.calls)
        else:
            outputs = run_calls(program, model, bundle.calls, like=bundle.eager)
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


def render(names: list[str], targets: list[str]) -> int:
    """Writes docs/models.md."""
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
    lines = [INTRO, "| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
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
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"wrote {PAGE}")
    return 0


def main() -> int:
    """Command line."""
    from examples.models import CASES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("export", "run", "render"))
    parser.add_argument("--target", action="append", help="may be repeated; host and sm_90 where left out")
    parser.add_argument("--model", action="append", choices=sorted(CASES), help="may be repeated; all where left out")
    parser.add_argument("--program", type=pathlib.Path, help="run_session; without it, the Python runtime")
    arguments = parser.parse_args()
    targets: list[str] = arguments.target or ["host", "sm_90"]
    names: list[str] = arguments.model or list(CASES)
    if arguments.step == "export":
        return export(names, targets)
    if arguments.step == "render":
        return render(names, targets)
    if len(targets) != 1:
        parser.error(f"run: expected one --target, got {targets}")
    return run(names, targets[0], arguments.program)


if __name__ == "__main__":
    sys.exit(main())
