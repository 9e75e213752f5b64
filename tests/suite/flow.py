"""The flow that ExecuTorch's backend test suite takes for etcuda: which partitioner lowers, under which name."""

from __future__ import annotations

from typing import Any

from executorch.backends.test.harness import Tester
from executorch.backends.test.harness.stages import StageType, ToEdgeTransformAndLower
from executorch.backends.test.suite.flow import TestFlow
from torch import Tensor, nn

from etcuda import CompileOptions, CudaPartitioner


def make_flow(target: str) -> TestFlow:
    """``etcuda_host`` or the like: export, ``to_edge_transform_and_lower`` with our partitioner, run, compare."""

    class Lower(ToEdgeTransformAndLower):  # type: ignore[misc]
        def __init__(self) -> None:
            partitioner = CudaPartitioner(target, CompileOptions(progress=False))
            super().__init__(CudaPartitioner, partitioners=[partitioner])

    class CudaTester(Tester):  # type: ignore[misc]
        def __init__(
            self, module: nn.Module, example_inputs: tuple[Tensor, ...], dynamic_shapes: Any | None = None
        ) -> None:
            stages = {**Tester.default_stage_classes(), StageType.TO_EDGE_TRANSFORM_AND_LOWER: Lower}
            super().__init__(module, example_inputs, stages, dynamic_shapes)

    return TestFlow(f"etcuda_{target}", backend="etcuda", tester_factory=CudaTester)
