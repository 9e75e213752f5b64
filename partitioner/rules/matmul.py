"""Matrix products: library calls through the runtime's shims."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, dtype_list
from etcuda.shims import compute_shim

aten = torch.ops.aten

_SHIM_OF = {
    aten._scaled_mm.default: "_scaled_mm_out",
    aten.addmm.default: "addmm_out",
    aten.baddbmm.default: "baddbmm_out",
    aten.bmm.default: "bmm_out",
    aten.linear.default: "addmm_out",
    aten.mm.default: "mm_out",
}


class MatmulRule(Rule):
    """Claimed for the dtypes that the target's shim takes."""

    ops = tuple(_SHIM_OF)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses products and dtypes without a shim."""
        name = _SHIM_OF[view.op]
        shim = compute_shim(view.side, name)
        if shim is None:
            return Refusal(f"the {view.side} runtime has no shim for {name}", {"shim": name})
        dtypes = {tensor.dtype for tensor in (*view.input_tensors, *view.result_tensors)}
        if dtypes <= shim.dtypes and len(dtypes) == 1:
            return None
        got = dtype_list(dtypes)
        return Refusal(f"{shim.name} takes one of {dtype_list(shim.dtypes)}, got {got}", {"dtype": got})
