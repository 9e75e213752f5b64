"""``etcuda weights m.pte``."""

from __future__ import annotations

import pathlib
import sys
import time

import click

from etcuda.llm.extra import readable


@click.command(short_help="Make the weights of a program that was exported without them.")
@click.argument("program", type=click.Path(path_type=pathlib.Path))
@click.option("-o", "--output", type=click.Path(path_type=pathlib.Path), help="the weights; m.ptd beside the program")
def command(program: pathlib.Path, output: pathlib.Path | None) -> None:
    """Make the weights of PROGRAM, m.pte, that was exported with --random --weights none.

    Reads m.weights.json beside it and writes m.ptd, the same bytes that the export would have written. Needs neither
    the checkpoint nor transformers.
    """
    from etcuda.llm.make_weights import make_weights

    start = time.perf_counter()
    shown = 0
    with click.progressbar(length=0, label="making weights", file=sys.stderr, update_min_steps=1 << 26) as bar:

        def progress(done: int, total: int) -> None:
            nonlocal shown
            bar.length = total
            bar.update(done - shown)
            shown = done

        made = make_weights(program, output, progress)
    size = made.stat().st_size
    seconds = time.perf_counter() - start
    click.echo(f"{made}  {readable(size)} in {seconds:.1f} s, {readable(size / seconds)} a second")
