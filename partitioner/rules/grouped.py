"""Products of groups of rows with a matrix each: a pass writes them as one batched product."""

from __future__ import annotations

import torch

from etcuda.partitioner.node_view import NodeView, Refusal
from etcuda.partitioner.rules.base import Rule, dtype_list

_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})


class GroupedProductRule(Rule):
    """Claimed for sorted rows with the ends of their groups, as experts take them, and without groups."""

    ops = (torch.ops.aten._grouped_mm.default,)

    def refuse(self, view: NodeView) -> Refusal | None:
        """Refuses other ranks and dtypes, a bias, and a number of groups that is not fixed."""
        rows, matrices, ends = view.tensor("self"), view.tensor("mat2"), view.arguments["offs"]
        ranks = (rows.dim(), matrices.dim(), 0 if ends is None else ends.dim())
        if ranks not in ((2, 3, 1), (3, 3, 0)):
            reason = f"_grouped_mm takes rows (S, K), matrices (G, K, N) and ends (G), got ranks {ranks}"
            return Refusal(reason, {"ranks": ranks})
        if not isinstance(matrices.shape[0], int):
            return Refusal(f"_grouped_mm takes a fixed number of groups, got {matrices.shape[0]}")
        out_dtype = view.arguments["out_dtype"]
        if view.arguments["bias"] is not None or out_dtype not in (None, rows.dtype):
            return Refusal(f"_grouped_mm takes no bias and no other dtype of results, got {out_dtype}")
        dtypes = {rows.dtype, matrices.dtype}
        if len(dtypes) > 1 or not dtypes <= _DTYPES:
            got = dtype_list(dtypes)
            return Refusal(f"_grouped_mm takes one of {dtype_list(_DTYPES)}, got {got}", {"dtype": got})
        return None
