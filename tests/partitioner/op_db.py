"""Samples of PyTorch's own tests, put to the rules, to Inductor's decompositions and to its lowerings.

``python -m tests.partitioner.op_db sm_90`` prints what is claimed and not compiled, a line each; with ``3 24`` behind,
it looks at the operators 3, 27, 51 and so on. It is a process of its own, for it makes Inductor believe in a GPU.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch._inductor import config, ir
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram, default_decompositions
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from etcuda.options import BackendConfig
from etcuda.partitioner.support import refuse
from etcuda.passes.manager import PASSES
from etcuda.shims import COMPUTE_SHIMS
from etcuda.target import resolve_target
from tests.partitioner.lowering import OPTIONS, shim_of

DTYPES = (torch.float32, torch.int64, torch.bool)
# What passes make of a call before the compiler sees it.
REWRITTEN_BY = ("apply_decompositions", "decompose_conv", "decompose_library_calls", "widen_reductions")
REWRITES = [each for each in PASSES if each.name in REWRITTEN_BY]
# Other sources than a claimed call: the sample cannot be traced without its values.
UNTRACED = (AssertionError, RuntimeError, NotImplementedError, TypeError, ValueError, IndexError)


def claimed_not_compiled(target: str, part: int = 0, parts: int = 1) -> tuple[int, list[str]]:
    """How many samples were claimed whole, and what of them the compiler or the runtime lacks.

    Args:
        target: of the rules, and of the device that the samples are on.
        part: which of ``parts`` parts of the operators.
        parts: their number.
    """
    from torch.testing._internal.common_methods_invocations import op_db

    is_host = target == "host"
    if not is_host:
        from etcuda.backend.inductor import device

        resolved = resolve_target(target)
        assert not isinstance(resolved, str)
        device.install(resolved)
    rules = BackendConfig(resolve_target(target))
    to_core, to_inductor = default_decompositions().materialize(), select_decomp_table()
    shims = COMPUTE_SHIMS["host" if is_host else "cuda"].keys()
    side = "cpu" if is_host else "cuda"
    claimed, problems = 0, []
    for op in op_db[part::parts]:
        for call, values in _samples(op, side):
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), config.patch(OPTIONS):
                inputs = [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=d) for v, d in values]
                try:
                    core = _functional(call, inputs, to_core)
                except UNTRACED:
                    continue
                if any(refuse(node, rules) for node in _calls(core)):
                    continue
                claimed += 1
                name = f"{op.name} {op.variant_test_name} {[str(v.dtype) for v in inputs]}"
                try:
                    for each in REWRITES:
                        each.run(cast(ExportedProgram, SimpleNamespace(graph_module=core, graph=core.graph)), rules)
                except Exception as error:
                    problems.append(f"{name}: pass {each.name} fails: {type(error).__name__}: {error}")
                    continue
                core.recompile()
                inner = _functional(core, inputs, to_inductor)
                for node in _calls(inner):
                    refusal = refuse(node, rules)
                    if refusal is not None:
                        problems.append(f"{name}: becomes {node.target}: {refusal.reason}")
                if not is_host and any(node.op == "get_attr" for node in inner.graph.nodes):
                    continue  # constants, which an export lifts: here they would be moved to a GPU
                called = [
                    shim.replace("_cpu_", "_cuda_") if not is_host else shim for shim in _library_calls(inner, inputs)
                ]
                # Which template of ours or theirs computes a convolution is chosen later than this looks.
                called = [shim for shim in called if not shim.endswith("_convolution")]
                problems += [f"{name}: calls {shim}" for shim in called if shim not in shims]
    return claimed, problems


def _samples(op: Any, device: str) -> Iterator[tuple[Callable[..., Any], list[tuple[torch.Tensor, str]]]]:
    """The first and the last sample of each dtype, as a function of its tensors."""
    for dtype in DTYPES:
        if not op.supports_dtype(dtype, "cpu"):
            continue
        samples = list(op.sample_inputs("cpu", dtype, requires_grad=False))
        for sample in samples[:: max(1, len(samples) - 1)]:
            flat, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
            places = [index for index, value in enumerate(flat) if isinstance(value, torch.Tensor)]
            if any(flat[place].layout != torch.strided for place in places):
                continue

            def call(*tensors: torch.Tensor, flat: Any = flat, spec: Any = spec, places: Any = places) -> Any:
                given = [torch.device(device) if isinstance(value, torch.device) else value for value in flat]
                for place, tensor in zip(places, tensors, strict=True):
                    given[place] = tensor
                first, args, kwargs = pytree.tree_unflatten(given, spec)
                results = pytree.tree_leaves(op(first, *args, **kwargs))
                return [result for result in results if isinstance(result, torch.Tensor)]

            yield call, [(flat[place], device) for place in places]


def _functional(function: Callable[..., Any], inputs: list[torch.Tensor], table: Any) -> GraphModule:
    traced = make_fx(torch.func.functionalize(function), decomposition_table=table)(*inputs)
    # Decompositions may write in place.
    if any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable for node in _calls(traced)
    ):
        traced = make_fx(torch.func.functionalize(traced))(*inputs)
    return traced


def _calls(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "call_function"]


def _library_calls(module: GraphModule, inputs: list[torch.Tensor]) -> list[str]:
    graph = GraphLowering(module, example_inputs=inputs, cpp_wrapper=True, aot_mode=True, is_inference=True)
    with V.set_graph_handler(graph), V.set_fake_mode(inputs[0].fake_mode if inputs else FakeTensorMode()):
        graph.run(*inputs)
    kernels = [op for op in graph.operations if isinstance(op, ir.ExternKernel) and not isinstance(op, ir.MultiOutput)]
    return [shim_of(kernel) for kernel in kernels]


def main() -> None:
    """Prints what is claimed and not compiled, and the number of samples that are claimed."""
    warnings.simplefilter("ignore")
    claimed, problems = claimed_not_compiled(*sys.argv[1:2], *map(int, sys.argv[2:]))
    print(*problems, claimed, sep="\n")


if __name__ == "__main__":
    main()
