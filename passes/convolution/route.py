"""Convolutions become calls of ``etcuda::convolution``, with the bias, residual and ReLU that belong to them."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.kernels.convolution.check import is_channels_last
from etcuda.kernels.convolution.configs import choose
from etcuda.kernels.convolution.problem import problem_of, refuse
from etcuda.kernels.formats.base import DTYPES
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.convolution.layout import Layouts
from etcuda.passes.convolution.weights import ChannelsInnermost
from etcuda.passes.graph.calls import arguments, insert_call
from etcuda.passes.graph.meta import tensor_of
from etcuda.passes.graph.program_constants import forget_unused, insert_constant, made_of, target_of, value_of
from etcuda.passes.graph.recipes import stand_in

log = logging.getLogger(__name__)
aten = torch.ops.aten

# Bytes that a thread loads at once, and that tensor cores want of a pixel.
_LOAD = 16


@graph_pass(requires=("lower_edge_ops", "view_copy_to_view", "fold_batch_norm"))
def route_convolution(program: ExportedProgram, config: BackendConfig) -> int:
    """Routes plain convolutions in two dimensions to ``etcuda::convolution``, for the GPU.

    Before: ``relu(add(convolution(x, w, b), y))``.
    After: ``convolution(x, w', b, y, relu=True)`` with channels innermost in ``w'``, which is stored so, and in ``x``,
    ``y`` and the result, which are copied where another operator wants them otherwise.
    Images of so few channels that a pixel has less than 16 bytes, as the first convolution of a model reads them, get
    channels of zeros. What stays: one and three dimensions, transposed and depthwise convolutions, and weights that are
    no constants.
    """
    if config.is_host or not config.options.cudnn:
        return 0
    layouts = Layouts(program.graph)
    filters: dict[tuple[Node, int], Node] = {}
    changed = 0
    for node in list(program.graph.nodes):
        if node.op != "call_function" or node.target is not aten.convolution.default:
            continue
        reason = _refuse(program, node)
        if reason is None:
            _route(program, config, node, layouts, filters)
            changed += 1
        else:
            log.info("%s is generated: %s", node.name, reason)
    if changed:
        layouts.settle()
        forget_unused(program, list(dict.fromkeys(weight for weight, _ in filters)))
    return changed


def _refuse(program: ExportedProgram, node: Node) -> str | None:
    given = arguments(node)
    x, weight = tensor_of(given["input"]), tensor_of(given["weight"])
    if weight.dim() != 4:
        return f"it has {weight.dim() - 2} dimensions"
    if given["transposed"]:
        return "it is transposed"
    if given["groups"] > 1 and weight.shape[1] == 1:
        return "it is depthwise"
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        return f"its dtypes are {x.dtype} and {weight.dtype}"
    for name in ("weight", "bias"):
        if given[name] is not None and target_of(program, given[name]) is None:
            return f"its {name} is no constant"
    if given["bias"] is not None and tensor_of(given["bias"]).dtype != x.dtype:
        return f"its bias is {tensor_of(given['bias']).dtype}"
    innermost = weight.permute(0, 2, 3, 1)
    numbers = (_pair(given["stride"]), _pair(given["padding"]), _pair(given["dilation"]))
    return refuse(problem_of(x, innermost, *numbers, given["groups"]))


def _route(
    program: ExportedProgram, config: BackendConfig, node: Node, layouts: Layouts, filters: dict[tuple[Node, int], Node]
) -> None:
    given = arguments(node)
    weight: Node = given["weight"]
    channels = _stored_channels(tensor_of(weight), given["groups"])
    key = (weight, channels)
    if key not in filters:
        target = target_of(program, weight)
        assert target is not None
        value = value_of(program, target)
        made = made_of([value], ("channels innermost", channels), lambda: stand_in(ChannelsInnermost(value, channels)))
        filters[key] = insert_constant(program, weight, f"{target}_{channels}_channels_innermost", made)
    chain = _read_chain(node)
    x: Node = given["input"]
    if channels != tensor_of(weight).shape[1]:
        padding = [0, 0, 0, 0, 0, channels - int(tensor_of(x).shape[1])]
        x = insert_call(chain.last, aten.constant_pad_nd.default, (x, padding))
    x = layouts.channels_last(chain.last, x)
    residual = None if chain.residual is None else layouts.channels_last(chain.last, chain.residual)
    numbers = (_pair(given["stride"]), _pair(given["padding"]), _pair(given["dilation"]))
    problem = problem_of(tensor_of(x), tensor_of(filters[key]), *numbers, given["groups"])
    assert not isinstance(config.target, str)
    how = choose(problem, config.target).to_args()
    args: tuple[Any, ...] = (x, filters[key], given["bias"], residual, *numbers, given["groups"], chain.relu)
    op = torch.ops.etcuda.convolution.default
    call = insert_call(chain.last, op, (*args, config.options.allow_tf32, *how))
    was_channels_last = is_channels_last(tensor_of(chain.last))
    layouts.replace(chain.last, call, was_channels_last)
    for each in reversed(chain.nodes):
        program.graph.erase_node(each)


def _stored_channels(weight: torch.Tensor, groups: int) -> int:
    """Channels of filters as they are stored: those of a group, or as many as have 16 bytes, which one load takes."""
    channels = int(weight.shape[1])
    return max(channels, _LOAD // weight.itemsize) if groups == 1 else channels


@dataclasses.dataclass(frozen=True)
class _Chain:
    """A convolution and what is fused with it, in order: at most an addition, then at most a ReLU."""

    nodes: tuple[Node, ...]
    residual: Node | None
    relu: bool

    @property
    def last(self) -> Node:
        """Whose result the chain's is."""
        return self.nodes[-1]


def _read_chain(node: Node) -> _Chain:
    nodes, residual = [node], None
    user = _only_user(node)
    if user is not None and user.target is aten.add.Tensor:
        residual = _other(user, node)
        if residual is not None:
            nodes.append(user)
            user = _only_user(user)
    relu = user is not None and user.target is aten.relu.default
    if user is not None and relu:
        nodes.append(user)
    return _Chain(tuple(nodes), residual, relu)


def _only_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _other(add: Node, node: Node) -> Node | None:
    """What an addition adds to a convolution's result, if it has its shape and dtype."""
    given = arguments(add)
    others = [each for each in (given["self"], given["other"]) if each is not node]
    if len(others) != 1 or not isinstance(others[0], Node) or given["alpha"] != 1:
        return None
    other, value = others[0].meta.get("val"), tensor_of(node)
    if not isinstance(other, torch.Tensor) or other.dtype != value.dtype or other.device != value.device:
        return None
    return others[0] if tuple(other.shape) == tuple(value.shape) else None


def _pair(numbers: Any) -> list[int]:
    return list(numbers) * (2 if len(numbers) == 1 else 1)
