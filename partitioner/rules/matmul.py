"""Matrix products: library calls through the runtime's shims."""

from __future__ import annotations

import torch

from etcuda.backend.shims import compute_shim
from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule

aten = torch.ops.aten

_SHIM_OF = {
    aten.mm.default: "mm_out",
    aten.addmm.default: "addmm_out",
    aten.bmm.default: "bmm_out",
    aten.baddbmm.default: "baddbmm_out",
}


class MatmulRule(Rule):
    """Claimed for the dtypes that the target's shim takes."""

    ops = tuple(_SHIM_OF)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses dtypes without a library kernel."""
        name = _SHIM_OF[view.op]
        shim = compute_shim(view.side, name)
        if shim is None:
            return Refusal(f"the {view.side} runtime has no shim {name}", {"shim": name})
        dtype = next(iter(view.result_tensors)).dtype
        if dtype in shim.dtypes:
            return None
        taken = ", ".join(sorted(str(d).removeprefix("torch.") for d in shim.dtypes))
        return Refusal(f"{shim.name} takes {taken}, got {dtype}", {"shim": shim.name, "dtype": dtype})
