"""The tables behind the decisions."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph

from etcuda.options import BackendConfig
from etcuda.partitioner.inductor_tables import Lowering, has_device_function, lowering_of
from etcuda.partitioner.rules.base import overloads
from etcuda.partitioner.rules.embedding import EmbeddingRule
from etcuda.partitioner.rules.table import RULES, by_operator
from etcuda.partitioner.support import refuse
from etcuda.shims import COMPUTE_SHIMS, compute_shim
from etcuda.target import TARGETS

aten = torch.ops.aten
HOST = BackendConfig("host")


@pytest.mark.parametrize(
    ("op", "lowering"),
    [
        (aten.sin.default, Lowering.GENERATED),
        (aten.cumsum.default, Lowering.GENERATED),
        (aten.embedding.default, Lowering.GENERATED),
        (aten.gelu.default, Lowering.DECOMPOSED),
        (aten.linear.default, Lowering.DECOMPOSED),
        (aten.nonzero.default, Lowering.FALLBACK),
        (aten._embedding_bag.default, Lowering.FALLBACK),
        (aten._fft_c2r.default, Lowering.NONE),
    ],
)
def test_what_inductor_does(op: torch._ops.OpOverload, lowering: Lowering) -> None:
    assert lowering_of(op) is lowering


def test_special_functions_without_device_code() -> None:
    assert not has_device_function(aten.digamma.default, "cuda")
    assert has_device_function(aten.digamma.default, "host")
    assert has_device_function(aten.erf.default, "cuda")


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(ValueError, match=r"aten.embedding.default has two rules.*EmbeddingRule and EmbeddingRule"):
        by_operator([EmbeddingRule(), EmbeddingRule()])
    assert len(by_operator(RULES)) == sum(len(rule.ops) for rule in RULES)


def test_overloads_leave_out_those_that_write() -> None:
    found = overloads(aten.topk)
    assert aten.topk.default in found
    assert not any(op._schema.is_mutable for op in found)


def test_shims() -> None:
    assert compute_shim("cuda", "mm_out") is COMPUTE_SHIMS["cuda"]["aoti_torch_cuda_mm_out"]
    assert compute_shim("cuda", "convolution") is None
    assert compute_shim("host", "convolution") is not None


def _call(op: object, *values: object) -> object:
    graph = Graph()
    inputs = []
    for value in values:
        node = graph.placeholder("x")
        node.meta["val"] = value
        inputs.append(node)
    call = graph.call_function(op, tuple(inputs))  # type: ignore[arg-type]
    call.meta["val"] = values[0]
    refusal = refuse(call, HOST)
    return None if refusal is None else refusal.reason


@pytest.mark.parametrize(
    ("op", "value", "part"),
    [
        (aten.sin.default, torch.zeros(2, dtype=torch.complex64), "torch.complex64"),
        (aten.sin.default, torch.zeros(2, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (aten.sin.default, torch.zeros(2).to_sparse(), "torch.sparse_coo"),
        (aten.sin.default, torch.zeros([1] * 17), "got 17"),
        (aten.sin.default, None, "no metadata"),
        (len, torch.zeros(2), "not an ATen operator"),
        (aten.threshold_backward.default, torch.zeros(2), "gradients"),
        (torch.ops.higher_order.map_impl, torch.zeros(2), "control flow map_impl"),
    ],
)
def test_refusals_that_hold_for_every_operator(op: object, value: object, part: str) -> None:
    reason = _call(op, value)
    assert isinstance(reason, str)
    assert part in reason


def test_quantized_operators_are_refused() -> None:
    import executorch.exir  # noqa: F401  registers them

    reason = _call(torch.ops.quantized_decomposed.dequantize_per_tensor.default, torch.zeros(2, dtype=torch.int8))
    assert "quantized operators are not compiled" in str(reason)


def test_the_architecture_counts() -> None:
    graph = Graph()
    tensor = graph.placeholder("x")
    tensor.meta["val"] = torch.zeros(4, dtype=torch.bfloat16)
    index = graph.placeholder("i")
    index.meta["val"] = torch.zeros(4, dtype=torch.int64)
    call = graph.call_function(aten.scatter_add.default, (tensor, 0, index, tensor))
    call.meta["val"] = tensor.meta["val"]
    assert refuse(call, BackendConfig(TARGETS["sm_90"])) is None
    refusal = refuse(call, BackendConfig(TARGETS["sm_86"]))
    assert refusal is not None
    assert "sm_86" in refusal.reason


def test_a_table_inside_a_branch_is_refused() -> None:
    branch = torch.fx.symbolic_trace(torch.nn.Identity())
    branch.register_buffer("table", torch.zeros(3))
    with branch.graph.inserting_before(branch.graph.output_node()):
        branch.graph.get_attr("table")
    owner = torch.fx.GraphModule(torch.nn.Module(), Graph())
    owner.add_module("branch", branch)
    call = owner.graph.call_function(torch.ops.higher_order.cond, (True, owner.graph.get_attr("branch"), None, ()))
    call.meta["val"] = [torch.zeros(2)]
    refusal = refuse(call, HOST)
    assert refusal is not None
    assert "table inside it is a constant of shape (3,)" in refusal.reason
