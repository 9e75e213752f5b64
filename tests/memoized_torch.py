"""What PyTorch computes anew for every export though it is the same each time: computed once by a process of tests.

``run_decompositions`` asks the dispatcher for all composite operators and looks each of them up, once for each
namespace of operators, which was a seventh of the processor time of a lowering.
"""

from __future__ import annotations

import torch


def install() -> None:
    """Looks composite operators up again only if there are others than at the last time."""
    from torch._export import utils

    look_up, known = utils._materialize_cpp_cia_ops, []

    def look_up_if_changed() -> None:
        found = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if found != known:
            look_up()
            known[:] = found

    utils._materialize_cpp_cia_ops = look_up_if_changed
