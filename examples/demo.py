"""What ``make demo`` runs: export a decoder and ResNet-18 for the CPU and for a GPU, run them, compare with PyTorch.

The exports need no GPU. The CPU program always runs; the GPU program runs where there is a GPU it fits.
"""

from __future__ import annotations

import argparse
import functools
import logging
import pathlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
# A deprecation inside torchao, which ExecuTorch imports: nothing that a reader of the demo can act on.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from examples.decoder.model import Decoder, decode, encode, export_decoder, load_decoder  # noqa: E402
from examples.export import ExportRecord, export_program  # noqa: E402
from examples.models import relative_error  # noqa: E402
from examples.resnet.image import IMAGE, load_image  # noqa: E402
from examples.resnet.model import seeded_resnet18  # noqa: E402
from examples.running import Session, gpu_arch  # noqa: E402

PROMPT = "Shall I compare thee to a summer's day?\n"
NEW_TOKENS = 175
console = Console()
Predict = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


STAGES = ("capture", "lower", "write", "done")


def show(progress: Progress, task: TaskID, stage: str) -> None:
    progress.update(task, completed=STAGES.index(stage), stage=stage)


def capture(model: str) -> dict[str, torch.export.ExportedProgram]:
    """The methods of one of the demo's models."""
    if model == "decoder":
        return export_decoder(load_decoder())
    return {"forward": torch.export.export(seeded_resnet18(), (load_image(),))}


def export_all(targets: list[str], out: pathlib.Path) -> dict[tuple[str, str], ExportRecord]:
    """Writes ``<model>-<target>.pte`` for both models and every target."""
    records = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TextColumn("{task.fields[stage]:<8}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        jobs = [(model, target) for target in targets for model in ("decoder", "resnet18")]
        last = len(STAGES) - 1
        tasks = [progress.add_task(" for ".join(job), total=last, stage="waiting", start=False) for job in jobs]
        for (model, target), task in zip(jobs, tasks, strict=True):
            on_stage = functools.partial(show, progress, task)
            progress.start_task(task)
            on_stage("capture")
            path = out / f"{model}-{target}.pte"
            records[model, target] = export_program(capture(model), target, path, on_stage=on_stage)
            on_stage("done")
    return records


def generate(predict: Predict) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy continuation of the prompt: its tokens, and the logits each was chosen from."""
    prompt = encode(PROMPT)
    logits = [predict("prefill", torch.tensor([prompt]), torch.arange(len(prompt)))]
    tokens = [int(logits[0].argmax())]
    for position in range(len(prompt), len(prompt) + NEW_TOKENS - 1):
        logits.append(predict("decode", torch.tensor([tokens[-1:]]), torch.tensor([position])))
        tokens.append(int(logits[-1].argmax()))
    return tokens, logits


def run_decoder(path: pathlib.Path, target: str, table: Table) -> bool:
    """Generates with PyTorch and with the program, prints the text, adds a row; whether they agree."""
    model: Decoder = load_decoder()
    eager_seconds: list[float] = []

    def eager(_: str, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        with torch.no_grad():
            out: torch.Tensor = model(tokens, positions).clone()
        eager_seconds.append(time.perf_counter() - start)
        return out

    expected, expected_logits = generate(eager)
    session = Session(path)
    tokens, logits = generate(session.call)
    matching = sum(one == other for one, other in zip(tokens, expected, strict=True))
    error = relative_error(logits, expected_logits)
    console.rule(f"decoder on {target}")
    console.print(Text(PROMPT, style="dim"), Text(decode(tokens), style="bold"), sep="", end="\n\n")
    prefill = f"prefill {len(encode(PROMPT))} tokens"
    for what, calls in ((prefill, slice(0, 1)), ("decode 1 token", slice(1, None))):
        table.add_row(
            f"decoder {what}",
            target,
            f"{error:.1e}",
            f"{matching} of {len(expected)} tokens",
            f"{statistics.median(session.seconds[calls]) * 1e3:.2f}",
            f"{statistics.median(eager_seconds[calls]) * 1e3:.2f}",
        )
    return matching == len(expected) and error < 1e-4


def run_resnet(path: pathlib.Path, target: str, table: Table) -> bool:
    """Classifies the image with PyTorch and with the program and adds a row; whether they agree."""
    model, image = seeded_resnet18(), load_image()
    session = Session(path)
    eager_seconds = []
    for _ in range(5):
        start = time.perf_counter()
        expected = model(image)
        eager_seconds.append(time.perf_counter() - start)
        scores = session.call("forward", image)
    error = relative_error([scores], [expected])
    same = int(scores.argmax()) == int(expected.argmax())
    table.add_row(
        f"resnet18 {IMAGE.name}",
        target,
        f"{error:.1e}",
        f"class {int(scores.argmax())} and {int(expected.argmax())}",
        f"{statistics.median(session.seconds) * 1e3:.2f}",
        f"{statistics.median(eager_seconds) * 1e3:.2f}",
    )
    return same and error < 1e-4


def export_table(records: dict[tuple[str, str], ExportRecord]) -> Table:
    """One row per program."""
    table = Table(title="Programs", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("model", "target", "delegated", "delegates", "kernels", ".pte MB", "export s"):
        table.add_column(heading, justify="left" if heading in ("model", "target") else "right")
    for (model, target), r in records.items():
        row = (f"{r.delegated} / {r.nodes}", str(r.partitions), str(r.kernels), f"{r.nbytes / 1e6:.2f}")
        table.add_row(model, target, *row, f"{r.seconds:.1f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out", help="folder for the .pte files")
    parser.add_argument("--targets", default="host,sm_90", help="comma-separated")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    out: pathlib.Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    targets: list[str] = arguments.targets.split(",")
    torch.set_num_threads(1)

    console.print("[bold]Exporting.[/bold] No GPU is used, whatever the target.")
    records = export_all(targets, out)
    caption = "error: relative, the largest over the calls; ms: median of a call; eager: PyTorch, one CPU thread"
    results = Table(title="Runs", title_justify="left", caption=caption, box=box.SIMPLE_HEAD)
    for heading in ("run", "target", "error", "agreement", "ms", "eager ms"):
        results.add_column(heading, justify="left" if heading in ("run", "target", "agreement") else "right")
    agreed, skipped = True, []
    for target in targets:
        if target not in ("host", gpu_arch()):
            skipped.append(target)
            continue
        agreed &= run_decoder(out / f"decoder-{target}.pte", target, results)
        agreed &= run_resnet(out / f"resnet18-{target}.pte", target, results)
    console.print(export_table(records))
    console.print(results)
    for target in skipped:
        have = gpu_arch() or "no GPU"
        console.print(
            f"Not run here: {target} ({have}). Its .pte files are in {out}; copy them to a GPU machine.", soft_wrap=True
        )
    if not agreed:
        console.print("[bold red]A program disagrees with PyTorch; see the table.[/bold red]")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
