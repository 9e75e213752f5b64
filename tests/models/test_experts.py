"""Mixture-of-experts models of transformers with the README's three lines: one partition, right on the host."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim

import etcuda.runtime
from etcuda import CudaPartitioner, partition_report, save_program
from tests.exhaustive import only
from tests.partitioner.tagging import left

transformers = pytest.importorskip("transformers")
runtime = pytest.importorskip("executorch.runtime")

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2, "use_cache": False,
}  # fmt: skip
IDS = torch.arange(12)[None] * 7 % 128
SHAPES = ({1: Dim("tokens", min=2, max=64)},)


def model_of(kind: str, experts: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation=experts, dtype=dtype)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "experts", "dtype"),
    [
        ("Qwen3Moe", "grouped_mm", torch.float32),
        ("Qwen3Moe", "batched_mm", torch.bfloat16),
        ("Mixtral", "grouped_mm", torch.bfloat16),
    ],
)
def test_one_partition(kind: str, experts: str, dtype: torch.dtype) -> None:
    exported = torch.export.export(model_of(kind, experts, dtype), (IDS,))
    for target in ("host", "sm_90"):
        report = partition_report(exported, target)
        assert len(report.partitions) == 1, report
        assert report.refusals == (), report


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "experts", "dtype"), [
    ("Qwen3Moe", "grouped_mm", torch.float32), only(False, "Mixtral", "batched_mm", torch.bfloat16),
])  # fmt: skip
def test_on_the_host(kind: str, experts: str, dtype: torch.dtype, tmp_path: pathlib.Path) -> None:
    assert etcuda.runtime.is_registered()
    model = model_of(kind, experts, dtype)
    exported = torch.export.export(model, (IDS,), dynamic_shapes=SHAPES)
    with warnings.catch_warnings():
        # No size is fixed on the way.
        warnings.simplefilter("error", UserWarning)
        lowered = to_edge_transform_and_lower(exported, partitioner=[CudaPartitioner("host")])
    assert left(lowered)["executorch_call_delegate"] == 1
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    method = runtime.Runtime.get().load_program(tmp_path / "m.pte").load_method("forward")
    precise = model_of(kind, "batched_mm", torch.float32).double()
    for ids in (IDS, IDS.flip(1)[:, :5], IDS.repeat(1, 4), IDS[:, :2]):
        (got,) = method.execute((ids,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = precise(ids).logits
        error = (got.double() - expected).norm() / expected.norm()
        assert error < (1e-4 if dtype == torch.float32 else 5e-2)


@pytest.mark.slow
def test_for_a_gpu() -> None:
    exported = torch.export.export(model_of("Qwen3Moe", "grouped_mm", torch.bfloat16), (IDS,), dynamic_shapes=SHAPES)
    lowered = to_edge_transform_and_lower(exported, partitioner=[CudaPartitioner("sm_90")])
    assert left(lowered)["executorch_call_delegate"] == 1
