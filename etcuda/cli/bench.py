"""``etcuda bench m.pte``."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from etcuda.errors import GenerationError

if TYPE_CHECKING:
    from etcuda.llm.bench import BenchRow


@click.command(short_help="Measure a language model's prompt and generation rates.")
@click.argument("program", type=click.Path(path_type=pathlib.Path))
@click.option("-p", "--prompt", "prompts", help="tokens of prompts: 512,2048  [default: 512, or what the cache holds]")
@click.option("-n", "--generate", "answers", help="tokens of answers: 128,256  [default: 128, or what the cache holds]")
@click.option("-s", "--steps", default="", help="tokens of answers sampled on the device, such as 128")
@click.option("-d", "--depth", "depths", default="0", show_default=True, help="tokens in the cache before: 0,4096")
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="of each test")
@click.option(
    "--bandwidth-gbs", type=click.FloatRange(min=0, min_open=True), help="for the limit  [default: of the target]"
)
@click.option("--data-path", type=click.Path(path_type=pathlib.Path), help="the weights  [default: m.ptd]")
@click.option(
    "-o", "--output", "form", type=click.Choice(["md", "csv", "json"]), default="md", show_default=True, help="form"
)
@click.option(
    "--picture", type=click.Path(path_type=pathlib.Path), help="a picture of the rates by depth, .png or .svg"
)
def command(
    program: pathlib.Path,
    prompts: str | None,
    answers: str | None,
    steps: str,
    depths: str,
    repetitions: int,
    bandwidth_gbs: float | None,
    data_path: pathlib.Path | None,
    form: str,
    picture: pathlib.Path | None,
) -> None:
    """Measure PROGRAM, the m.pte that etcuda export wrote, by the native llm_runner.

    Tests are named as llama-bench names them: pp512 is a prompt of 512 tokens, tg128 are 128 tokens one by one; gs128
    are the same with sampling on the device. Each runs before it is counted, until it is a CUDA graph. The time to a
    prompt's first token is that of a loaded program, from token ids to logits in host memory. With --prompt "" or
    --generate "" there are none of that kind.
    """
    from etcuda.llm.bench import draw, measure

    tests = [f"pp{each}" for each in _numbers("--prompt", "512" if prompts is None else prompts, 1)]
    tests += [f"tg{each}" for each in _numbers("--generate", "128" if answers is None else answers, 1)]
    tests += [f"gs{each}" for each in _numbers("--steps", steps, 1)]
    bandwidth = None if bandwidth_gbs is None else bandwidth_gbs * 1e9
    # What was asked for is measured as it is, or refused.
    shorten = prompts is None and answers is None and not steps
    result = measure(program, data_path, tests, _numbers("--depth", depths, 0), repetitions, bandwidth, shorten)
    if form == "json":
        click.echo(json.dumps(result.to_json(), indent=1))
    elif form == "csv":
        click.echo(_csv(result.rows), nl=False)
    else:
        click.echo(_markdown(result.rows))
        rate = result.weight_bytes / 1e9 / result.load_seconds
        whole = f", {result.gpu_used_bytes / 2**20:.1f} MiB in use on the GPU" if result.gpu_used_bytes else ""
        click.echo(
            f"\nload {result.load_seconds:.2f} s ({rate:.2f} GB/s of weights), first step "
            f"{result.first_step_seconds:.2f} s, peak memory {result.peak_bytes / 2**20:.1f} MiB{whole}"
        )
    if picture is not None:
        draw(result, picture)


def _numbers(name: str, text: str, least: int) -> list[int]:
    try:
        numbers = [int(each) for each in text.split(",")] if text else []
    except ValueError as error:
        raise GenerationError(f"{name}: expected numbers with commas between them, got {text!r}.") from error
    if any(each < least for each in numbers):
        raise GenerationError(f'{name}: expected numbers from {least} on, or "" for none, got {text!r}.')
    return numbers


_HEAD = ("test", "depth", "tok/s", "+-", "limit tok/s", "share", "first token ms")


def _cells(row: BenchRow) -> tuple[str, ...]:
    limit = ("", "") if row.limit is None else (f"{row.limit:.1f}", f"{100 * row.rate / row.limit:.1f}%")
    first = "" if row.first_token_ms is None else f"{row.first_token_ms:.2f}"
    return (row.test, str(row.depth), f"{row.rate:.2f}", f"{row.deviation:.2f}", *limit, first)


def _markdown(rows: Sequence[BenchRow]) -> str:
    lines = [_HEAD, tuple("---" for _ in _HEAD), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _csv(rows: Sequence[BenchRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_HEAD)
    writer.writerows(map(_cells, rows))
    return out.getvalue()
