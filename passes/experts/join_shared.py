"""An expert that computes every token becomes one more expert of the mixture beside it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.fx import Node

from etcuda.kernels.experts import EXPERTS
from etcuda.kernels.experts.configs import is_few
from etcuda.kernels.experts.problem import ExpertsProblem, format_of
from etcuda.options import BackendConfig
from etcuda.passes.base import graph_pass
from etcuda.passes.experts.shared_expert import Product, SharedExpert, recognize_shared_expert
from etcuda.passes.graph.calls import arguments, insert_call, insert_results
from etcuda.passes.graph.dead_code import erase_dead
from etcuda.passes.graph.meta import refresh_meta, tensor_of
from etcuda.passes.graph.program_constants import forget_unused, has_other_methods, target_of
from etcuda.passes.linear.call import ROWS_OF, STORED, LinearCall
from etcuda.passes.linear.join import ALIGNMENT, join_rows
from etcuda.passes.recognize.dense import DenseCall, recognize_dense
from etcuda.passes.recognize.rows import same_rows
from etcuda.torch_private import bounds

log = logging.getLogger(__name__)

aten = torch.ops.aten
_ops = torch.ops.etcuda


@graph_pass(requires=("lower_edge_ops", "bind_symbolic_inputs", "view_copy_to_view"))
def join_shared(program: ExportedProgram, config: BackendConfig) -> int:
    """Computes a shared expert with the experts that are chosen, where tokens are few.

    Before: ``experts(x, *route_experts(mm(x, router)), w) + sigmoid(mm(x, s)) * down(silu(gate(x)) * up(x))``.
    After: ``experts(x, *route_experts(mm(x, router | s), shared="sigmoid"), w | shared)``.
    Where another method has the same weights and tokens are many, the products stay, and read rows of the joined
    weights: the experts' and the shared one's are stored once. What does not have the experts' format and width stays.
    """
    joined: list[tuple[SharedExpert, bool]] = []
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target is not _ops.experts.default:
            continue
        found = recognize_shared_expert(node)
        reason = found if isinstance(found, str) else _refuse(program, found, config)
        if reason is not None or isinstance(found, str):
            log.info("%s has no shared expert that joins it: %s", node.name, reason)
            continue
        _, most = bounds(tensor_of(arguments(node)["x"]).shape[0])
        few = is_few(_problem(node), most)
        if few or has_other_methods(program):
            joined.append((found, few))
    unused: list[Node] = []
    for found, few in joined:
        unused += _join(program, found, few)
    if joined:
        erase_dead(program.graph)
        forget_unused(program, list(dict.fromkeys(unused)))
        refresh_meta(program.graph)
    return len(joined)


def _problem(experts: Node) -> ExpertsProblem:
    given = arguments(experts).items()
    problem: ExpertsProblem = EXPERTS.problem_of(
        {name: tensor_of(each) if isinstance(each, Node) else each for name, each in given}
    )
    return problem


def _stored(product: Product) -> tuple[Node | None, ...]:
    """The tensors of a product's weight, in the order of ``STORED``."""
    return product.stored if isinstance(product, LinearCall) else (product.weight, None, None, None, None)


def _stack(experts: Node, name: str) -> tuple[Node | None, ...]:
    """The tensors of the experts' weights of a name, in the order of ``STORED``."""
    given = arguments(experts)
    return tuple(given[name if part == "qdata" else f"{name}_{part}"] for part in STORED)


def _refuse(program: ExportedProgram, found: SharedExpert, config: BackendConfig) -> str | None:
    """Why a shared expert stays as it is; ``None`` if it can be one of the experts. The same in all methods."""
    given, problem = arguments(found.experts), _problem(found.experts)
    if not config.is_host and not problem.few_serves:
        return "the kernels for few tokens do not serve it"
    one_more = dataclasses.replace(problem, num_experts=problem.num_experts + 1, top_k=problem.top_k + 1)
    reason = EXPERTS.refuse(one_more)
    if reason is not None:
        return f"with one expert more {reason}"
    if found.activation != given["activation"]:
        return f"its activation is {found.activation}, and the experts' {given['activation']}"
    if given["gate_up_bias"] is not None or given["down_bias"] is not None:
        return "the experts have biases"
    for product, name, rows in (
        (found.gate, "gate_up", problem.width),
        (found.up, "gate_up", problem.width),
        (found.down, "down", problem.hidden),
    ):
        reason = _refuse_product(product, found.experts, name, rows)
        if reason is not None:
            return f"{product.node.name}: {reason}"
    return _refuse_constants(program, found)


def _refuse_product(product: Product, experts: Node, name: str, rows: int) -> str | None:
    given = arguments(experts)
    if product.bias is not None:
        return "it has a bias"
    if product.n != rows:
        return f"it has {product.n} rows, and those of the experts {rows}"
    stack = [None if each is None else tensor_of(each) for each in _stack(experts, name)]
    weight, scale, zero, scale_step, zero_step = stack
    assert weight is not None
    size = given["group_size" if name == "gate_up" else "down_group_size"]
    wanted = format_of(weight, scale, zero, scale_step, zero_step, size)
    has = product.format if isinstance(product, LinearCall) else None
    if wanted != has:
        return f"its format is {has or 'as it is'}, and the experts' {wanted or 'as it is'}"
    if isinstance(product, LinearCall) and product.activation_dtype != given["activation_dtype"]:
        return f"its activations are {product.activation_dtype!r}, and the experts' {given['activation_dtype']!r}"
    for one, all_of in zip(_stored(product), stack, strict=True):
        if one is None or all_of is None:
            if one is not None or all_of is not None:
                return "it stores other tensors than the experts"
            continue
        value = tensor_of(one)
        if value.dtype != all_of.dtype or value.shape[1:] != all_of.shape[2:]:
            return f"{one.name} is {value.dtype} {list(value.shape)}, of the experts {list(all_of.shape)}"
        if all_of[0].nbytes % ALIGNMENT or value.nbytes % ALIGNMENT:
            return f"{one.name} would not begin at a multiple of {ALIGNMENT} bytes"
    return None


def _refuse_constants(program: ExportedProgram, found: SharedExpert) -> str | None:
    products = (found.gate, found.up, found.down)
    nodes = [node for name in ("gate_up", "down") for node in _stack(found.experts, name)]
    nodes += [node for product in products for node in _stored(product)]
    seen: set[Node] = set()
    for node in nodes:
        if node is None:
            continue
        if target_of(program, node) is None:
            return f"{node.name} is no constant"
        if len(node.users) > 1 or node in seen:
            return f"{node.name} is used elsewhere too and would be stored twice"
        seen.add(node)
    return None


def _join(program: ExportedProgram, found: SharedExpert, few: bool) -> list[Node]:
    """Joins the weights and computes one mixture if tokens are few; returns weights that may be unused now."""
    count = _problem(found.experts).num_experts
    stacks = {name: _stack(found.experts, name) for name in ("gate_up", "down")}
    parts = {"gate_up": (found.gate, found.up), "down": (found.down,)}
    views: dict[str, Node] = {}
    unused: list[Node] = []
    for name, products in parts.items():
        stored = [_stored(product) for product in products]
        for place, part in enumerate(STORED):
            stack = stacks[name][place]
            if stack is None:
                continue
            rows = [each for product in stored if (each := product[place]) is not None]
            shape = tensor_of(stack).shape
            whole = join_rows(program, [stack, *rows])
            # Where they are read, so that what one layer calls stands together and repeats are found.
            view = insert_call(found.experts, aten.view.default, (whole, [count + 1, *shape[1:]]))
            view.meta[ROWS_OF] = whole.name
            views[name if part == "qdata" else f"{name}_{part}"] = view
            start = count * int(shape[1])
            for each in rows:
                end = start + int(tensor_of(each).shape[0])
                if not few:
                    _read_rows(each, whole, start, end)
                start = end
            unused += [stack, *rows]
    if few:
        return unused + _compute(program, found, views)
    found.experts.args, found.experts.kwargs = tuple((arguments(found.experts) | views).values()), {}
    pair = _router(program, found)
    if pair is not None:
        router, share = pair
        weights = [router.weight, share.weight]
        whole = join_rows(program, weights)
        _read_rows(router.weight, whole, 0, router.n)
        _read_rows(share.weight, whole, router.n, router.n + 1)
        unused += weights
    log.info("%s and %s: weights are joined, products stay", found.experts.name, found.down.node.name)
    return unused


def _compute(program: ExportedProgram, found: SharedExpert, views: dict[str, Node]) -> list[Node]:
    """One mixture in the place of the sum; returns weights that may be unused now."""
    before = found.total
    routing = arguments(found.routing)
    unused: list[Node] = []
    kind, logits = "one", routing["logits"]
    pair = _router(program, found)
    if found.share is not None:
        kind = "sigmoid"
        if pair is None:
            share = insert_call(before, aten.reshape.default, (found.share.node, [-1, 1]))
            logits = insert_call(before, aten.cat.default, ([logits, share], 1))
        else:
            unused = [each.weight for each in pair]
            whole = join_rows(program, unused)
            transposed = insert_call(before, aten.permute.default, (whole, [1, 0]))
            logits = insert_call(before, aten.mm.default, (pair[0].x, transposed))
    given: Any = (routing | {"logits": logits, "shared": kind}).values()
    weights, indices = insert_results(before, _ops.route_experts.default, tuple(given))
    args = arguments(found.experts) | views | {"routing": weights, "indices": indices}
    made = insert_call(before, _ops.experts.default, tuple(args.values()))
    if found.answer is not found.experts:
        made = insert_call(before, found.answer.target, (made, found.answer.args[1]))  # type: ignore[arg-type]
    found.total.replace_all_uses_with(made)
    log.info("%s: %s is one more expert, which weighs %s", found.experts.name, found.down.node.name, kind)
    return unused


def _router(program: ExportedProgram, found: SharedExpert) -> tuple[DenseCall, DenseCall] | None:
    """The products that give the logits of the experts and of the shared one, if their weights can be joined."""
    logits = arguments(found.routing)["logits"]
    router, share = recognize_dense(logits, (torch.bfloat16, torch.float16, torch.float32)), found.share
    if router is None or not isinstance(share, DenseCall) or router.bias is not None or share.bias is not None:
        return None
    if share.n != 1 or len(logits.users) != 1 or tensor_of(router.weight).dtype != tensor_of(share.weight).dtype:
        return None
    weights = (router.weight, share.weight)
    if same_rows(router.x) is not same_rows(share.x) or any(target_of(program, each) is None for each in weights):
        return None
    if any(len(node.users) != 1 for each in (router, share) for node in (each.weight, each.transposed)):
        return None
    return None if tensor_of(router.weight).nbytes % ALIGNMENT else (router, share)


def _read_rows(weight: Node, whole: Node, start: int, end: int) -> None:
    """Lets the one call that reads a weight read rows of the joined one, marked so that they pass for a weight."""
    (user,) = weight.users
    rows = insert_call(user, aten.slice.Tensor, (whole, 0, start, end))
    rows.meta[ROWS_OF] = whole.name
    user.replace_input_with(weight, rows)
