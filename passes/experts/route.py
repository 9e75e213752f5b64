"""Mixtures of experts get the configuration of their kernels."""

from __future__ import annotations

import logging
from typing import Any

from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.kernels.activations.hopper.reorder import ARCH
from etcuda.kernels.common.device import supports_pdl
from etcuda.kernels.experts import EXPERTS
from etcuda.kernels.experts.configs import HopperLaunch, ManyLaunch, choose
from etcuda.kernels.experts.hopper.grouped import refuse
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules, graph_pass
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.graph.program_constants import target_of
from etcuda.passes.linear.call import whole_of
from etcuda.target import CudaTarget
from etcuda.torch_private import bounds

log = logging.getLogger(__name__)

_ROUTING = "etcuda::route_experts"


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "inline_kernels"))
def route_experts(program: ExportedProgram, config: BackendConfig) -> int:
    """Chooses the kernels of every ``etcuda::experts`` by the most tokens that the program may have, for the GPU.

    Before: ``experts(x, ..., how=[])``, ``route_experts(logits, ..., pdl=0)``.
    After: ``experts(x, ..., how=[0, 4, 2048, ...])``, ``route_experts(logits, ..., pdl=1)``.
    """
    target = config.target
    if not isinstance(target, CudaTarget):
        return 0
    changed = 0
    for module in graph_modules(program):
        for node in module.graph.nodes:
            if node.op != "call_function" or getattr(node.target, "_schema", None) is None:
                continue
            if node.target._schema.name == EXPERTS.op and not arguments(node)["how"]:
                _route(program, node, target, config.options.hopper_experts)
                changed += 1
            elif node.target._schema.name == _ROUTING and supports_pdl(target):
                # The kernel reads nothing before it has waited.
                node.args, node.kwargs = tuple((arguments(node) | {"pdl": 1}).values()), {}
                changed += 1
    return changed


def _route(program: ExportedProgram, node: Node, target: CudaTarget, option: bool) -> None:
    given = arguments(node)
    values = {name: tensor_of(each) if isinstance(each, Node) else each for name, each in given.items()}
    weights = [each for name, each in given.items() if name.startswith(("gate_up", "down")) and isinstance(each, Node)]
    # A kernel that starts early reads its weight before those in front of it have ended: none of them may write it.
    pdl = int(supports_pdl(target) and all(target_of(program, whole_of(each)) is not None for each in weights))
    problem = EXPERTS.problem_of(values)
    _, most = bounds(values["x"].shape[0])
    how = choose(problem, most, target.shared_memory_per_block, pdl)
    if option and isinstance(how, ManyLaunch) and target.arch == ARCH:
        reason = refuse(problem, values["x"].dtype)
        if reason is None:
            how = HopperLaunch(target.num_sms, pdl)
        else:
            log.info("%s keeps the kernels in Triton: %s", node.name, reason)
    changed: dict[str, Any] = given | {"how": how.to_args()}
    node.args, node.kwargs = tuple(changed.values()), {}
    log.info("%s, %s tokens: %s", node.name, "any number of" if most is None else f"up to {most}", how)
