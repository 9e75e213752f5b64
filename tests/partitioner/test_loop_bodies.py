"""Calls in the bodies of loops are decomposed, whether or not anything around the loop is."""

from __future__ import annotations

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

from etcuda import partition_report
from etcuda.partitioner.preview import PartitionRecorder


class Inside(nn.Module):
    """A layer inside of control flow, and nothing to decompose around it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        if self.kind == "while_loop":
            return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, self.layer(y)), (count, x))
        if self.kind == "scan":
            return scan(lambda s, r: (self.layer(s[None])[0] + r, (s + r).clone()), x[0] * 0, x)
        if self.kind == "map":
            return (map_rows(lambda row, scale: self.layer(row[None])[0] * scale, x, x[0].cos()),)
        return (torch.cond(x.sum() > 0, lambda y: self.layer(y), lambda y: y - 1, (x,)),)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", ["while_loop", "scan", "map", "cond"])
def test_a_layer_inside_lowers(kind: str, gradients: bool) -> None:
    model = Inside(kind).requires_grad_(gradients)
    program = torch.export.export(model, (torch.randn(5, 8), torch.tensor(0)))
    before = str(program.graph)
    report = partition_report(program, "host")
    assert report.refusals == ()
    assert len(report.partitions) == 1
    # With ExecuTorch's check, which the report leaves out.
    to_edge_transform_and_lower(program, partitioner=[PartitionRecorder("host")])
    assert str(program.graph) == before
