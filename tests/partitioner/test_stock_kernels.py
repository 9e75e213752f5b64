"""What nobody takes and the stock runtime has no kernel for is named, at export and where the program is loaded."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import pytest
import torch
from executorch.exir import EdgeCompileConfig, EdgeProgramManager, to_edge_transform_and_lower

from etcuda import CudaPartitioner
from etcuda.errors import UnsupportedGraphError
from etcuda.partitioner.stock_kernels import SENTENCE, stock_kernels
from tests.partitioner.programs import export
from tests.partitioner.tagging import X

VOLUME = torch.rand(1, 2, 9, 9, 9)


class Refuses(CudaPartitioner):
    """Leaves everything to ExecuTorch."""

    def partition(self, exported_program: Any) -> Any:
        from executorch.exir.backend.partitioner import PartitionResult

        return PartitionResult(tagged_exported_program=exported_program, partition_tags={})


def _lower(function: Any, *inputs: Any, partitioners: Any) -> tuple[EdgeProgramManager, list[str]]:
    config = EdgeCompileConfig(_check_ir_validity=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        lowered = to_edge_transform_and_lower(
            export(function, *inputs), partitioner=partitioners, compile_config=config
        )
    return lowered, [str(each.message) for each in seen if "no delegate computes" in str(each.message)]


def test_one_warning_names_all() -> None:
    def model(x: Any) -> Any:
        branch = torch.cond(x.sum() > 0, lambda x: torch.linalg.qr(x)[0].contiguous(), lambda x: x.sin(), (x,))
        return torch.linalg.qr(x)[0] * 2, torch.linalg.inv_ex(x)[0] + x.shape[0], branch

    _, seen = _lower(model, X[:, :4], partitioners=[CudaPartitioner("host"), CudaPartitioner("host")])
    assert seen == [SENTENCE.format(ops="aten::linalg_inv_ex.inverse, aten::linalg_qr.out")]


def test_what_another_partitioner_takes_is_not_named() -> None:
    """Ours stands last here; the first leaves everything."""
    _, seen = _lower(torch.hypot, X, X, partitioners=[Refuses("sm_90"), CudaPartitioner("sm_90")])
    assert seen == []


def test_kernels_of_the_stock_runtime() -> None:
    runtime = pytest.importorskip("executorch.runtime")
    registered = runtime.Runtime.get().operator_registry.operator_names
    assert stock_kernels() <= registered
    assert {"linear", "add", "relu"} <= {name.removeprefix("aten::").split(".")[0] for name in stock_kernels()}


def test_loading_says_the_same(tmp_path: pathlib.Path) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    import etcuda.runtime

    def pool(x: Any) -> Any:
        pooled = torch.nn.functional.avg_pool3d
        return pooled(x, 2), pooled(x, 3), torch.linalg.qr(x[0, 0, 0])[0]

    lowered, seen = _lower(pool, VOLUME, partitioners=[Refuses("host")])
    lowered.to_executorch().save(str(tmp_path / "m.pte"))
    program = runtime.Runtime.get().load_program(tmp_path / "m.pte")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            program.load_method("forward")
        assert [etcuda.runtime.last_error()] == seen
    assert "aten::avg_pool3d.out, aten::linalg_qr.out" in seen[0]


def test_operators_of_which_two_schemas_are_alike() -> None:
    """``aten::pow`` has such; integer powers by tensors are left to the stock runtime, which has them."""
    x = torch.tensor([0, 3, 5])
    _, seen = _lower(lambda x: (2**x, x**x), x, partitioners=[CudaPartitioner("host")])
    assert seen == []


@pytest.mark.parametrize("function", [torch.nonzero, torch.argwhere, lambda x: torch.where(x > 0)[1] + 1])
def test_indices_that_would_be_taken_for_others_are_refused(function: Any) -> None:
    with pytest.raises(UnsupportedGraphError, match=r"of a tensor with 2 dimensions: expected .* Select by a mask"):
        _lower(function, X, partitioners=[CudaPartitioner("host")])


def test_indices_of_one_dimension_are_right() -> None:
    runtime = pytest.importorskip("executorch.runtime")
    lowered, _ = _lower(torch.nonzero, torch.tensor([0.0, 1.0, 0.0, 2.0]), partitioners=[CudaPartitioner("host")])
    method = runtime.Runtime.get().load_program(lowered.to_executorch().buffer).load_method("forward")
    (got,) = method.execute([torch.tensor([3.0, 0.0, 0.0, 4.0])])
    assert got.tolist() == [[0], [3]]
