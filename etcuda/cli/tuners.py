"""The families' tuners as one function. Each family has a module ``tune`` with a function ``tune`` for now."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import pathlib

from etcuda.errors import OptionError

_ONLY = {"attention": ("split", "tiled")}


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """What a run of a tuner depends on.

    Attributes:
        arch: architecture that the local GPU must have; ``None`` takes any.
        out: the table to write; ``None`` is the one that export reads.
        minutes: after which no shape is started.
        jobs: processes that compile.
        resume: a table whose entries are kept and not measured again.
        only: one kernel of the family alone.
    """

    arch: str | None
    out: pathlib.Path | None
    minutes: float
    jobs: int
    resume: pathlib.Path | None
    only: str | None


def families() -> tuple[str, ...]:
    """Names of the kernel families that have a tuner."""
    return ("attention", "int4", "int8", "rounding")


def run(family: str, options: TuneOptions) -> int:
    """Measures a family and writes its table; returns the exit status.

    Raises:
        OptionError: the family has no kernel of the name ``only``.
        KernelArgumentError: there is no GPU, it is of another architecture, or ``resume`` is no table.
    """
    if options.only is not None and options.only not in _ONLY.get(family, ()):
        names = " or ".join(_ONLY.get(family, ())) or f"no --only, for {family} is measured as a whole"
        raise OptionError(f"tune: --only: expected {names}, got {options.only!r}.")
    from etcuda.kernels import tables
    from etcuda.kernels.int4.select import LocalDevice

    module = importlib.import_module(f"etcuda.kernels.{family}.tune")
    arch = options.arch or LocalDevice.current().arch
    folder = tables.FOLDER if family == "attention" else tables.FOLDER / family
    status: int = module.tune(
        argparse.Namespace(
            arch=arch,
            out=options.out or folder / f"{arch}.json",
            resume=options.resume,
            budget_s=options.minutes * 60,
            jobs=options.jobs,
            only=options.only,
        )
    )
    return status
