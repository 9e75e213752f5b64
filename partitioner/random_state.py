"""Random operators draw from a buffer of the method, the generator's state, if the option ``random_seed`` is given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx import GraphModule, Node

from etcuda.errors import StateError
from etcuda.kernels.random.generator import STATE_NAME, make_state
from etcuda.options import BackendConfig
from etcuda.partitioner.aliases import base_name, buffer_placeholders, functional_copy
from etcuda.partitioner.random_draws import DRAWS, Draw, is_draw, refuse_draw
from etcuda.partitioner.support import branches
from etcuda.passes.base import graph_modules
from etcuda.passes.graph.calls import arguments, insert_call
from etcuda.passes.graph.copy_graph import copy_graph
from etcuda.passes.graph.inline_function import inline_function
from etcuda.passes.graph.meta import mode_of_graph

aten = torch.ops.aten


def draw_from_state(program: ExportedProgram, config: BackendConfig) -> ExportedProgram:
    """Replaces random operators by functions of a buffer, which every call of the method advances.

    Before: ``rand([3])`` and ``randn_like(x)``.
    After, for a buffer that holds a seed and an offset: ``uniform(state, [3], draw=0)``, ``normal(state, x.shape,
    draw=1)``, and the buffer's new value ``state + [0, 2]``.

    Each branch of a ``cond`` gets the state as one more operand. Draws inside of loops are left, where each turn would
    draw the same numbers, and so are those that ``refuse_draw`` refuses.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.

    Returns:
        ``program`` if the option is not given or nothing is drawn, else a functional copy of it.

    Raises:
        StateError: the model uses a buffer of the state's name in a method that draws.
    """
    seed = config.options.random_seed
    if seed is None:
        return program
    has_draws = any(is_draw(node) for module in graph_modules(program) for node in module.graph.nodes)
    if has_draws:
        made: ExportedProgram = functional_copy(program)
        count = _count(made.graph_module)
        if count:
            _replace(made, count)
            made.state_dict[STATE_NAME] = make_state(seed)
            return made
    if STATE_NAME not in program.graph_signature.inputs_to_buffers.values():
        return program
    # A method that sets the state: its buffer starts as that of the others.
    made = copy_graph(program)
    made.state_dict[STATE_NAME] = make_state(seed)
    return made


def _count(module: GraphModule) -> int:
    """Number of draws in a graph and in the branches of its conditions."""
    inside = sum(_count(branch) for node in module.graph.nodes for branch in _branches(node))
    return inside + sum(_is_served(node) for node in module.graph.nodes)


def _is_served(node: Node) -> bool:
    return is_draw(node) and refuse_draw(node) is None


def _branches(node: Node) -> list[GraphModule]:
    return branches(node) if node.target is torch.ops.higher_order.cond else []


def _replace(program: ExportedProgram, count: int) -> None:
    state = _state_placeholder(program)
    first = next(node for node in program.graph.nodes if node.op not in ("placeholder", "get_attr"))
    device = state.meta["val"].device
    step = insert_call(first, aten.arange.default, (2,), dtype=torch.int64, device=device)
    advanced = insert_call(first, aten.add.Tensor, (state, step), alpha=count)
    # Draws read a value of their own, and not the buffer: where several partitions draw, one of them can own it.
    old = insert_call(first, aten.sub.Tensor, (advanced, step), alpha=count)
    _replace_in(program.graph_module, old, itertools.count())
    output = program.graph.output_node()
    output.args = ((advanced, *output.args[0]),)
    spec = OutputSpec(OutputKind.BUFFER_MUTATION, TensorArgument(advanced.name), STATE_NAME)
    program.graph_signature.output_specs = [spec, *program.graph_signature.output_specs]
    program.graph.lint()
    program.graph_module.recompile()


def _replace_in(module: GraphModule, state: Node, numbers: Iterator[int]) -> None:
    for node in list(module.graph.nodes):
        if _is_served(node):
            inputs = list(node.all_input_nodes)
            inline_function(node, _function(node, next(numbers), inputs), state, *inputs)
        inner = _branches(node)
        if sum(_count(branch) for branch in inner) == 0:
            continue
        *others, operands = node.args
        node.args = (*others, (*operands, state))
        for branch in inner:
            _replace_in(branch, _add_operand(branch, state), numbers)
    module.graph.lint()
    module.recompile()


def _add_operand(branch: GraphModule, state: Node) -> Node:
    behind = next(node for node in branch.graph.nodes if node.op != "placeholder")
    with branch.graph.inserting_before(behind):
        made: Node = branch.graph.placeholder(STATE_NAME)
    made.meta["val"] = state.meta["val"]
    return made


def _function(node: Node, number: int, inputs: list[Node]) -> Callable[..., Tensor]:
    """A call as a function of the state and of its own inputs, tensors and sizes."""

    def draw(state: Tensor, *values: Any) -> Tensor:
        known = dict(zip(inputs, values, strict=True))
        given = {name: torch.fx.map_arg(value, known.__getitem__) for name, value in arguments(node).items()}
        return DRAWS[base_name(node)](Draw(state, number, node.meta["val"].dtype, given))

    return draw


def _state_placeholder(program: ExportedProgram) -> Node:
    """The placeholder of the state, a new one unless the model has such a buffer, which this method must not use."""
    for node, name in buffer_placeholders(program).items():
        if name == STATE_NAME:
            if node.users or name in program.graph_signature.buffers_to_mutate.values():
                raise StateError(
                    f"buffer {STATE_NAME!r} is the state that random operators of this method draw from; expected the "
                    "model not to use it in a method that draws, got both. Set it in a method of its own, as "
                    "etcuda.random.Reseed does, or give the model's buffer another name."
                )
            return node
    signature = program.graph_signature
    weights = (InputKind.PARAMETER, InputKind.BUFFER)
    specs = signature.input_specs
    place = next((i for i, spec in enumerate(specs) if spec.kind not in weights), len(specs))
    behind = next(itertools.islice(program.graph.nodes, place, None))
    with program.graph.inserting_before(behind):
        made: Node = program.graph.placeholder(f"b_{STATE_NAME}")
    mode: Any = mode_of_graph(program.graph)
    with mode:
        made.meta["val"] = torch.empty(2, dtype=torch.int64)
    spec = InputSpec(InputKind.BUFFER, TensorArgument(made.name), STATE_NAME, persistent=True)
    signature.input_specs = [*specs[:place], spec, *specs[place:]]
    return made
