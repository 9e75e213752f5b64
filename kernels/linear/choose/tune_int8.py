"""``etcuda tune int8``: the tuner of int4, on int8 weights."""

from __future__ import annotations

import argparse

from etcuda.kernels.linear.choose import tune as int4
from etcuda.kernels.linear.choose.tune import add_arguments

__all__ = ["add_arguments", "tune"]


def tune(arguments: argparse.Namespace) -> int:
    """Measures and writes the table.

    Raises:
        KernelArgumentError: there is no GPU, or it is not of the architecture named.
    """
    return int4.tune(arguments, bits=8)
