"""What the tests of attention routing share: programs before and after the passes, and a way to run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.kernels.attention.reference import attention_reference
from etcuda.options import BackendConfig, CompileOptions
from etcuda.partitioner.partitioner import CudaPartitioner
from etcuda.passes.manager import run_passes
from etcuda.target import TARGETS
from tests.passes.handed_over import handed_over
from tests.passes.made_weights import made_weights

SDPA = torch.nn.functional.scaled_dot_product_attention
SPLIT, TILED = torch.ops.etcuda.attention_split.default, torch.ops.etcuda.attention_tiled.default
CLUSTER = torch.ops.etcuda.attention_cluster.default
H200 = TARGETS["sm_90"]
CHECKED = BackendConfig(H200, CompileOptions(check_attention=True))
BF16 = torch.bfloat16


def routed(program: ExportedProgram, config: BackendConfig = CHECKED) -> ExportedProgram:
    """The program as the backend gets it, after the passes."""
    edge = handed_over(program, CudaPartitioner(target=H200, options={"attention_kernels": True}))
    assert _is_called(edge)
    run_passes(edge, config)
    assert not _is_called(edge)
    return edge


def _is_called(program: ExportedProgram) -> bool:
    names = {str(node.target) for module in modules(program) for node in module.graph.nodes}
    return any("scaled_dot_product" in name or "etcuda.attention.default" in name for name in names)


def modules(program: ExportedProgram) -> list[GraphModule]:
    return [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]


def calls(program: ExportedProgram) -> list[Node]:
    return [n for module in modules(program) for n in module.graph.nodes if n.target in (SPLIT, TILED, CLUSTER)]


def only_call(program: ExportedProgram) -> Node:
    (node,) = calls(program)
    return node


def masking(node: Node) -> tuple[bool, bool, bool, int, int]:
    """Whether mask, kv_len and positions are given; causal; window."""
    mask, kv_len, positions, _, causal, window = node.args[3:9]
    return mask is not None, kv_len is not None, positions is not None, causal, window  # type: ignore[return-value]


def _reference(*arguments: Any, **extras: Any) -> torch.Tensor:
    return attention_reference(*arguments[:10], **extras)


def runnable(program: ExportedProgram) -> Callable[..., Any]:
    """The program with the reference in the place of the kernels; its state lasts from call to call."""
    with made_weights(program):
        module = program.module(check_guards=False)
    for inner in module.modules():
        if isinstance(inner, GraphModule):
            for node in inner.graph.nodes:
                if node.target in (SPLIT, TILED, CLUSTER):
                    node.target = _reference
            inner.recompile()

    def run(**inputs: torch.Tensor) -> Any:
        # A delegate may take the inputs in another order.
        result = module(*(inputs[str(name)] for name in program.graph_signature.user_inputs))
        return result[0] if isinstance(result, tuple) else result

    return run


def run(program: ExportedProgram, *inputs: Any) -> Any:
    """Runs the program of a function from ``tests.partitioner.programs.export`` once."""
    return runnable(program)(**{f"inputs_{index}": value for index, value in enumerate(inputs)})


def tensors(l_q: int = 5, l_kv: int = 40, batch: int = 1, dtype: torch.dtype = BF16) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((batch, 4, l_q, 16), (batch, 2, l_kv, 16), (batch, 2, l_kv, 16))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def attend(q: Any, k: Any, v: Any, mask: Any = None, **keywords: Any) -> Any:
    return SDPA(q, k, v, attn_mask=mask, enable_gqa=True, **keywords)


def n_of(k: torch.Tensor) -> torch.Tensor:
    return torch.arange(k.shape[2])


def m_of(q: torch.Tensor) -> torch.Tensor:
    return torch.arange(q.shape[2])[:, None]


def self_attention(q: Any, k: Any, v: Any) -> Any:
    return attend(q, k, v, n_of(k) <= m_of(q)).transpose(1, 2).reshape(1, -1, 64) * 2


LENGTH = Dim("length", min=2, max=100)
DYNAMIC = ({2: LENGTH}, {2: LENGTH}, {2: LENGTH})
