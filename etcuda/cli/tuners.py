"""The families' tuners as one function. Each family has a module ``tune`` with a function ``tune`` for now."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import os
import pathlib

from etcuda.errors import OptionError

_ONLY = {"attention": ("split", "tiled")}


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """What a run of a tuner depends on.

    Attributes:
        arch: architecture that the local GPU must have; ``None`` takes any.
        out: the table to write; ``None`` is the one that export reads, which is overwritten only with ``resume``.
        resume: a table whose entries are kept and not measured again.
        budget_s: seconds after which no shape is started.
        jobs: processes that compile.
        only: one kernel of the family alone.
    """

    arch: str | None = None
    out: pathlib.Path | None = None
    resume: pathlib.Path | None = None
    budget_s: float = math.inf
    jobs: int = min(14, os.cpu_count() or 1)
    only: str | None = None


def families() -> tuple[str, ...]:
    """Names of the kernel families that have a tuner."""
    return ("attention", "int4", "int8", "rounding")


def run(family: str, options: TuneOptions) -> int:
    """Measures a family and writes its table; returns the exit status.

    Raises:
        OptionError: the family has no kernel of the name ``only``, or the table of export would be overwritten.
        KernelArgumentError: there is no GPU, it is of another architecture, or ``resume`` is no table.
    """
    if options.only is not None and options.only not in _ONLY.get(family, ()):
        names = " or ".join(_ONLY.get(family, ())) or f"no --only, for {family} is measured as a whole"
        raise OptionError(f"tune: --only: expected {names}, got {options.only!r}.")
    from etcuda.kernels import tables
    from etcuda.kernels.common.device import LocalDevice

    module = importlib.import_module(f"etcuda.kernels.{family}.tune")
    arch = options.arch or LocalDevice.current().arch
    folder = tables.FOLDER if family == "attention" else tables.FOLDER / family
    out = options.out or folder / f"{arch}.json"
    if options.out is None and options.resume is None and out.exists():
        raise OptionError(
            f"tune: --out: expected a file to write, for {out} holds a table; got none. "
            f"Pass --resume {out} to keep its entries and measure the others, or --out to write elsewhere or anew."
        )
    status: int = module.tune(argparse.Namespace(**dataclasses.asdict(options) | {"arch": arch, "out": out}))
    return status
