"""``etcuda tune FAMILY``."""

from __future__ import annotations

import difflib
import math
import os
import pathlib

import click

from etcuda.errors import OptionError


@click.command(short_help="Measure a kernel family's configurations on the local GPU.")
@click.argument("family")
@click.option(
    "--arch", help="architecture of the local GPU, sm_90; the run fails on another  [default: whichever it is]"
)
@click.option(
    "--out",
    type=pathlib.Path,
    help="the table to write  [default: the one that export reads, which is overwritten only with --resume]",
)
@click.option("--resume", type=pathlib.Path, help="a table whose entries are kept and not measured again")
@click.option("--budget-s", type=float, default=math.inf, help="seconds after which no shape is started")
@click.option("--jobs", type=click.IntRange(min=1), default=min(14, os.cpu_count() or 1), help="processes that compile")
@click.option("--only", help="one kernel of the family alone; attention: split or tiled")
@click.pass_context
def command(
    ctx: click.Context,
    family: str,
    arch: str | None,
    out: pathlib.Path | None,
    resume: pathlib.Path | None,
    budget_s: float,
    jobs: int,
    only: str | None,
) -> None:
    """Measure every candidate configuration of a kernel FAMILY on the local GPU and write the table.

    Export reads the table of its target's architecture. What was measured before the time was up is written.
    """
    from etcuda.kernels.common import tuner

    known = tuner.families()
    if family not in known:
        close = difflib.get_close_matches(family, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise OptionError(f"tune: expected one of the kernel families {', '.join(known)}, got {family!r}.{hint}")
    options = tuner.TuneOptions(arch=arch, out=out, resume=resume, budget_s=budget_s, jobs=jobs, only=only)
    ctx.exit(tuner.run(family, options))
