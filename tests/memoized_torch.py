"""What PyTorch computes anew for every export though it is the same each time: computed once by a process of tests.

``run_decompositions`` asks the dispatcher for all composite operators and looks each of them up, once for each
namespace of operators, which was a seventh of the processor time of a lowering. Each pass over a graph copied where
every node comes from, through all passes before it, which was a tenth.
"""

from __future__ import annotations

import torch
from torch.fx import traceback


def install() -> None:
    """For the process."""
    _look_operators_up_once()
    # Nothing changes where a node came from: copies may be the original.
    traceback.NodeSource.__deepcopy__ = lambda self, _memo: self  # type: ignore[attr-defined]


def _look_operators_up_once() -> None:
    """Again only if there are others than at the last time."""
    from torch._export import utils

    look_up, known = utils._materialize_cpp_cia_ops, []

    def look_up_if_changed() -> None:
        found = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if found != known:
            look_up()
            known[:] = found

    utils._materialize_cpp_cia_ops = look_up_if_changed
