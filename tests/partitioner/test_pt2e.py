"""Models that PT2E quantised: one partition, alone and beside XNNPACK."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from etcuda import CudaPartitioner, partition_report


class Convnet(nn.Module):
    """Convolutions, a depthwise one, a residual, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.classifier = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(x + nn.functional.hardtanh(x), 2)
        result: Tensor = self.classifier(torch.relu(self.second(x)).mean((2, 3)))
        return result


def quantized(model: nn.Module, x: Tensor, *, dynamic: bool) -> ExportedProgram:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    prepared: Any = prepare_pt2e(
        torch.export.export(model.eval(), (x,)).module(), XNNPACKQuantizer().set_global(config)
    )
    prepared(x)
    return torch.export.export(convert_pt2e(prepared), (x,))


def convnet() -> ExportedProgram:
    return quantized(Convnet(), torch.randn(2, 3, 16, 16), dynamic=False)


def backends(lowered: EdgeProgramManager) -> list[str]:
    """Backends of the delegates, and the operators that are left."""
    module = lowered.exported_program().graph_module
    found = []
    for node in module.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if node.op == "call_function" and name == "executorch_call_delegate":
            found.append(getattr(module, node.args[0].target).backend_id)
        elif node.op == "call_function" and name != "getitem":
            found.append(name)
    return found


@pytest.mark.parametrize("target", ["host", "sm_90"])
def test_one_partition(target: str) -> None:
    linear = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    for program in (convnet(), quantized(linear, torch.randn(3, 16), dynamic=True)):
        report = partition_report(program, target)
        assert (report.refusals, len(report.partitions)) == ((), 1)


def test_beside_xnnpack(delegated: list[ExportedProgram]) -> None:
    ours, theirs = CudaPartitioner("sm_90"), XnnpackPartitioner()
    first = to_edge_transform_and_lower(convnet(), partitioner=[ours, theirs])
    assert backends(first) == ["EtcudaBackend"]
    second = to_edge_transform_and_lower(convnet(), partitioner=[theirs, ours])
    # What XNNPACK leaves is ours: nothing is left to ExecuTorch's own kernels.
    assert set(backends(second)) <= {"XnnpackBackend", "EtcudaBackend"}
