"""The command ``etcuda``; also ``python -m etcuda.cli``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from etcuda.errors import EtcudaError

# Kernel families that have a tuner: a module ``tune`` with ``add_arguments`` and ``tune``.
_TUNED_FAMILIES = ("attention", "int4", "int8", "rounding")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status, 2 for an error that the user can act on."""
    parser = argparse.ArgumentParser(prog="etcuda", description="A CUDA backend for ExecuTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    tune = commands.add_parser("tune", help="measure a kernel family's configurations on the local GPU")
    families = tune.add_subparsers(dest="family", required=True)
    modules = {name: importlib.import_module(f"etcuda.kernels.{name}.tune") for name in _TUNED_FAMILIES}
    for name, module in modules.items():
        module.add_arguments(families.add_parser(name, help=f"write the table of {name} for the local GPU"))
    parsed = parser.parse_args(arguments)
    try:
        status: int = modules[parsed.family].tune(parsed)
    except EtcudaError as error:
        print(f"etcuda: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
