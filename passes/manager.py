"""Runs the passes, in one checked order."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import OutputSpec, SymIntArgument, TensorArgument
from torch.fx import GraphModule, Node

from etcuda.errors import PassError
from etcuda.options import BackendConfig
from etcuda.passes.attention.choose_quantized import choose_quantized_attention
from etcuda.passes.attention.fuse_rotary import fuse_rotary
from etcuda.passes.attention.route import route_attention
from etcuda.passes.base import GraphPass, NodeError, graph_modules, values_of
from etcuda.passes.canonical.bind_symbolic_inputs import bind_symbolic_inputs
from etcuda.passes.canonical.contiguous_outputs import contiguous_outputs
from etcuda.passes.canonical.decompose_conv import decompose_conv
from etcuda.passes.canonical.inline_kernels import inline_kernels
from etcuda.passes.canonical.inline_scalar_constants import inline_scalar_constants
from etcuda.passes.canonical.launch_early import launch_early
from etcuda.passes.canonical.lower_edge_ops import lower_edge_ops
from etcuda.passes.canonical.move_cond_predicate_to_host import move_cond_predicate_to_host
from etcuda.passes.canonical.record_output_layout import record_output_layout
from etcuda.passes.canonical.remove_dead_code import remove_dead_code
from etcuda.passes.canonical.view_copy_to_view import view_copy_to_view
from etcuda.passes.convolution.fold_batch_norm import fold_batch_norm
from etcuda.passes.convolution.route import route_convolution
from etcuda.passes.decompositions.apply import apply_decompositions
from etcuda.passes.dense.fuse_dense import fuse_dense
from etcuda.passes.dense.fuse_norm import fuse_norm
from etcuda.passes.dense.route_dense import route_dense
from etcuda.passes.experts.join_shared import join_shared
from etcuda.passes.experts.route import route_experts
from etcuda.passes.graph.edge_ops import ASSERTIONS
from etcuda.passes.graph.meta import forget_computed
from etcuda.passes.library.decompose import decompose_library_calls
from etcuda.passes.library.widen_reductions import widen_reductions
from etcuda.passes.linear.fuse_gate import fuse_gate
from etcuda.passes.linear.fuse_mlp import fuse_mlp
from etcuda.passes.linear.fuse_qkv import fuse_qkv
from etcuda.passes.linear.fuse_quantize import fuse_quantize
from etcuda.passes.linear.fuse_reorder import fuse_reorder
from etcuda.passes.linear.pack_torchao import pack_torchao
from etcuda.passes.linear.quantize_one_row import quantize_one_row
from etcuda.passes.linear.route import route_linear
from etcuda.passes.linear.split_joined import split_joined
from etcuda.torch_private import forget_pending_symbols

log = logging.getLogger(__name__)

PASSES: tuple[GraphPass, ...] = (
    lower_edge_ops,
    record_output_layout,
    bind_symbolic_inputs,
    inline_scalar_constants,
    view_copy_to_view,
    # In front of what makes formulas of the host's experts.
    join_shared,
    inline_kernels,
    launch_early,
    apply_decompositions,
    move_cond_predicate_to_host,
    pack_torchao,
    fuse_mlp,
    fuse_qkv,
    split_joined,
    route_linear,
    quantize_one_row,
    fuse_quantize,
    fuse_gate,
    fuse_reorder,
    route_experts,
    fuse_dense,
    route_dense,
    fuse_norm,
    fold_batch_norm,
    route_convolution,
    decompose_conv,
    fuse_rotary,
    route_attention,
    choose_quantized_attention,
    # Behind attention, whose masks are recognised by the calls that a model makes, a cumsum among them.
    decompose_library_calls,
    widen_reductions,
    contiguous_outputs,
    remove_dead_code,
)


@dataclasses.dataclass(frozen=True)
class PassResult:
    """What one pass did: its name and the number of nodes it changed."""

    name: str
    changed: int


def run_passes(
    program: ExportedProgram, config: BackendConfig, passes: Sequence[GraphPass] = PASSES
) -> list[PassResult]:
    """Rewrites a delegated program in place, pass after pass.

    Args:
        program: the program ExecuTorch hands to ``preprocess``, in the Edge dialect.
        config: target and options.
        passes: the list to run, for tests; the default is the product's.

    Raises:
        PassError: the list is out of order, or a pass failed or left the graph invalid.
    """
    check_order(passes)
    results = []
    sizes = _input_sizes(program)
    for each in passes:
        # Operators that were traced again, as nonzero and bincount, leave some that the next trace would fail for.
        forget_pending_symbols(values_of(program))
        try:
            changed = each.run(program, config)
            _settle(program)
            _check_sizes(program, sizes)
        except NodeError as error:
            raise PassError(_describe(each, error.node, str(error))) from error
        except PassError as error:
            raise PassError(f"pass {each.name!r} failed: {error}") from error
        except Exception as error:
            raise PassError(f"pass {each.name!r} failed: {type(error).__name__}: {error}") from error
        if changed:
            log.info("pass %s changed %d nodes", each.name, changed)
        results.append(PassResult(each.name, changed))
    # Passes read graphs alone, not the code of their modules, which takes half of the time to make after each pass.
    for module in graph_modules(program):
        forget_computed(module.graph)
        module.recompile()
    return results


def check_order(passes: Sequence[GraphPass]) -> None:
    """Checks that names are unique and that each pass comes after what it requires.

    Raises:
        PassError: naming the pass and the requirement that does not hold.
    """
    seen: set[str] = set()
    for each in passes:
        if each.name in seen:
            raise PassError(f"pass {each.name!r} is listed twice. Expected each name once. Remove one entry.")
        missing = [name for name in each.requires if name not in seen]
        if missing:
            before = ", ".join(sorted(seen)) or "nothing"
            raise PassError(
                f"pass {each.name!r} requires {missing[0]!r} to run before it, got {before} before it. "
                f"Move {missing[0]!r} in front of {each.name!r}."
            )
        seen.add(each.name)


def _describe(each: GraphPass, node: Node, message: str) -> str:
    where, modules = node.meta.get("stack_trace"), list((node.meta.get("nn_module_stack") or {}).values())
    origin = f" It comes from:\n{where}" if where else f" It comes from {modules[-1][0]}." if modules else ""
    return f"pass {each.name!r} failed at node {node.name!r} ({node.target}): {message}.{origin}"


def _settle(program: ExportedProgram) -> None:
    """Brings the signature up to date with the output node, and checks the graph."""
    for module in graph_modules(program):
        module.graph.lint()
        _check_meta(module)
    outputs = program.graph.output_node().args[0]
    specs = program.graph_signature.output_specs
    if not isinstance(outputs, tuple | list) or len(outputs) != len(specs):
        count = len(outputs) if isinstance(outputs, tuple | list) else 1
        raise PassError(f"the number of outputs changed: expected {len(specs)}, got {count}. A pass must keep them.")
    for node, spec in zip(outputs, specs, strict=True):
        _rename(spec, node)


def _input_sizes(program: ExportedProgram) -> dict[str, list[str]]:
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    tensors = [(node.name, node.meta.get("val")) for node in placeholders]
    return {name: [str(size) for size in value.shape] for name, value in tensors if isinstance(value, torch.Tensor)}


def _check_sizes(program: ExportedProgram, before: dict[str, list[str]]) -> None:
    """Fake tensors know when an operator has fixed a symbolic size to one number, which holds for that size alone."""
    for name, sizes in _input_sizes(program).items():
        # Passes may add constants, whose sizes are fixed.
        if sizes != before.get(name, sizes):
            raise PassError(
                f"the sizes of input {name!r} were narrowed: expected {before[name]}, got {sizes}. "
                "A pass must compute with sizes symbolically."
            )


def _rename(spec: OutputSpec, node: object) -> None:
    if isinstance(node, Node) and isinstance(spec.arg, TensorArgument | SymIntArgument) and spec.arg.name != node.name:
        spec.arg = dataclasses.replace(spec.arg, name=node.name)


def _check_meta(module: GraphModule) -> None:
    for node in module.graph.nodes:
        # Checks that the exporter wrote have no result.
        if node.target in ASSERTIONS:
            continue
        if node.op in ("placeholder", "call_function") and "val" not in node.meta:
            raise NodeError(node, "expected meta['val'], got none; the pass that made the node must compute it")
