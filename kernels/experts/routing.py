"""The operator ``etcuda::route_experts``: which experts a token is given to, and with what weights."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.library import triton_op

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.check import expect
from etcuda.kernels.common.memory import aligned, needs_reference
from etcuda.kernels.common.pdl import choose_kernel
from etcuda.kernels.common.registry import Cost, KernelRecord, register
from etcuda.kernels.experts.configs import padded
from etcuda.kernels.experts.problem import is_floating
from etcuda.kernels.experts.triton.routing import routing_kernel, routing_pdl
from etcuda.torch_private import hint

OP = "route_experts"
SCORES = ("softmax", "sigmoid")
GROUP_SCORES = ("max", "pair")
# What an expert that every token is given to weighs.
SHARED = ("none", "one", "sigmoid")
_MOST_EXPERTS = 4096
_MOST_TOP_K = 64


@dataclasses.dataclass(frozen=True)
class RoutingProblem:
    """Logits [tokens, experts], of which each token takes ``top_k``, out of ``top_groups`` of ``groups`` groups."""

    tokens: int
    experts: int
    top_k: int
    groups: int
    top_groups: int


def problem_of(
    logits: Tensor, top_k: int, groups: int, top_groups: int, shared: str = "none"
) -> RoutingProblem:  # fmt: skip
    """A call of the operator in numbers; dynamic sizes by their hints."""
    return RoutingProblem(hint(logits.shape[0]), hint(_experts(logits, shared)), top_k, groups, top_groups)


def refuse(problem: RoutingProblem) -> str | None:
    """Why the kernel does not serve the problem; ``None`` if it does."""
    if not 0 < problem.experts <= _MOST_EXPERTS:
        return f"experts are from 1 to {_MOST_EXPERTS}, got {problem.experts}"
    if problem.groups < 1 or problem.experts % problem.groups:
        return f"{problem.experts} experts are groups of one size, got {problem.groups} groups"
    if not 0 < problem.top_groups <= problem.groups:
        return f"top_groups is from 1 to the {problem.groups} groups, got {problem.top_groups}"
    most = min(problem.experts // problem.groups * problem.top_groups, _MOST_TOP_K)
    if not 0 < problem.top_k <= most:
        return f"top_k is from 1 to {most}, got {problem.top_k}"
    return None


def cost(problem: RoutingProblem) -> Cost:
    """What a call must do at least: read the logits, write what was chosen."""
    return Cost(problem.tokens * (2 * problem.experts + 8 * problem.top_k), 4 * problem.tokens * problem.experts)


def routing_reference(
    logits: Tensor, bias: Tensor | None, scores: str, top_k: int, groups: int, top_groups: int, group_score: str,
    normalize: bool, epsilon: float, scale: float, shared: str = "none",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator in fp32; see ``route_experts``."""
    experts = _experts(logits, shared)
    values = logits[:, :experts].to(torch.float32)
    found = torch.sigmoid(values) if scores == "sigmoid" else torch.softmax(values, -1)
    wanted = found if bias is None else found + bias.to(torch.float32)
    if top_groups < groups:
        grouped = wanted.reshape(-1, groups, experts // groups)
        of_group = grouped.amax(-1)
        if group_score == "pair":
            of_group = grouped.topk(2, -1)[0].sum(-1)
        best = of_group.topk(top_groups, -1)[1]
        number = torch.arange(groups, device=logits.device)
        chosen = (best.unsqueeze(-1) == number).any(1)
        wanted = torch.where(chosen.unsqueeze(-1), grouped, -torch.inf).reshape(-1, experts)
    indices = wanted.topk(top_k, -1)[1]
    routing = found.gather(1, indices)
    if normalize:
        routing = routing / (routing.sum(-1, keepdim=True) + epsilon)
    routing, indices = routing * scale, indices.to(torch.int32)
    if shared == "none":
        return routing, indices
    share = torch.ones_like(routing[:, :1])
    if shared == "sigmoid":
        share = torch.sigmoid(logits[:, experts:].to(torch.float32))
    return torch.cat([routing, share], 1), torch.cat([indices, torch.full_like(indices[:, :1], experts)], 1)


@triton_op("etcuda::route_experts", mutates_args=())
def route_experts(
    logits: Tensor,
    bias: Tensor | None,
    scores: str,
    top_k: int,
    groups: int,
    top_groups: int,
    group_score: str,
    normalize: bool,
    epsilon: float,
    scale: float,
    pdl: int,
    shared: str = "none",
) -> tuple[Tensor, Tensor]:
    """The experts of each token and their weights.

    Experts are chosen by their score plus the bias, where there are groups only out of the best groups; weighted by
    their score alone. Of equal ones on a GPU the first is chosen.

    Args:
        logits: [tokens, experts] floating; of scores in fp32. With the share "sigmoid" there is one column more.
        bias: ``None`` or [experts] floating.
        scores: "softmax" over all experts, or "sigmoid".
        top_k: experts of a token.
        groups: of neighbouring experts, of one size; 1 for none.
        top_groups: groups that a token's experts are of.
        group_score: of a group: "max", its best expert's; "pair", the sum of its two best ones'.
        normalize: whether a token's weights are divided by their sum plus ``epsilon``.
        epsilon: 0 or more.
        scale: that the weights are multiplied by, last.
        pdl: 1 to launch the kernel while the one in front of it runs.
        shared: whether each token is given to one expert more, whose number is ``experts``, and what that one weighs:
            "none", there is none; "one", 1; "sigmoid", the sigmoid of the last column. ``scale`` is not of it.

    Returns:
        weights float32 [tokens, top_k]; experts int32 [tokens, top_k], the best first. Behind them the one that is
        shared, if there is one: [tokens, top_k + 1].

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    _check(logits, bias, scores, top_k, groups, top_groups, group_score, epsilon, shared)
    if needs_reference(logits):
        return routing_reference(
            logits, bias, scores, top_k, groups, top_groups, group_score, normalize, epsilon, scale, shared
        )  # fmt: skip
    num_tokens, experts = logits.shape[0], _experts(logits, shared)
    routing, indices = _results(logits, top_k, shared)
    dense = aligned(logits.contiguous(), 16)
    kernel, early = choose_kernel(logits, routing_kernel, routing_pdl, pdl)
    kernel[(num_tokens,)](
        dense, dense if bias is None else bias.contiguous(), routing, indices, scale, epsilon, EXPERTS=experts,
        TOP_K=top_k, GROUPS=groups, TOP_GROUPS=top_groups, PAIRS=group_score == "pair", SIGMOID=scores == "sigmoid",
        HAS_BIAS=bias is not None, NORMALIZE=normalize, SHARED=shared, BLOCK_G=padded(groups),
        BLOCK_E=padded(experts // groups), BLOCK_K=padded(routing.shape[1]),
        num_warps=max(1, min(8, padded(experts) // 256)), **early,
    )  # fmt: skip
    return routing, indices


def _fake(
    logits: Tensor, bias: Tensor | None, scores: str, top_k: int, groups: int, top_groups: int, group_score: str,
    normalize: bool, epsilon: float, scale: float, pdl: int, shared: str = "none",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(logits, bias, scores, top_k, groups, top_groups, group_score, epsilon, shared)
    return _results(logits, top_k, shared)


route_experts.register_fake(_fake)


def _experts(logits: Tensor, shared: str) -> int:
    """Columns of the logits that are experts to choose among."""
    return logits.shape[1] - int(shared == "sigmoid")


def _results(logits: Tensor, top_k: int, shared: str) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], top_k + int(shared != "none"))
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def _check(
    logits: Tensor, bias: Tensor | None, scores: str, top_k: int, groups: int, top_groups: int, group_score: str,
    epsilon: float, shared: str,
) -> None:  # fmt: skip
    expect(is_floating(logits.dtype), OP, "logits", "bfloat16, float16 or float32", logits.dtype)
    expect(logits.dim() == 2, OP, "logits", "two dimensions [tokens, experts]", list(logits.shape))
    expect(isinstance(logits.shape[1], int), OP, "logits", "a fixed number of experts", list(logits.shape))
    expect(scores in SCORES, OP, "scores", f"one of {', '.join(SCORES)}", repr(scores))
    expect(group_score in GROUP_SCORES, OP, "group_score", f"one of {', '.join(GROUP_SCORES)}", repr(group_score))
    expect(epsilon >= 0, OP, "epsilon", "0 or more", epsilon)
    expect(shared in SHARED, OP, "shared", f"one of {', '.join(SHARED)}", repr(shared))
    experts = _experts(logits, shared)
    if bias is not None:
        expect(is_floating(bias.dtype), OP, "bias", "bfloat16, float16 or float32", bias.dtype)
        expect(list(bias.shape) == [experts], OP, "bias", f"shape [{experts}]", list(bias.shape))
        expect(bias.device == logits.device, OP, "bias", f"the device of logits, {logits.device}", bias.device)
    reason = refuse(problem_of(logits, top_k, groups, top_groups, shared))
    if reason is not None:
        raise KernelArgumentError(f"{OP}: {reason}. Call torch.topk.")
    pairs = group_score == "max" or groups == top_groups or experts // groups > 1
    expect(pairs, OP, "group_score", "'max' for groups of one expert", repr(group_score))


def routing_samples(device: str) -> list[dict[str, object]]:
    """Softmax over experts whose number is no power of two, and groups with a bias as DeepSeek has them."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 24, generator=random).to(device)
    bias = (torch.randn(24, generator=random) / 8).to(device)
    plain = {"groups": 1, "top_groups": 1, "group_score": "max", "normalize": True, "epsilon": 0.0, "scale": 1.0}
    grouped = {"groups": 4, "top_groups": 2, "group_score": "pair", "normalize": True, "epsilon": 1e-20, "scale": 2.5}
    rest = {"pdl": 0, "shared": "none"}
    return [
        {"logits": logits[:, :7].to(torch.float16), "bias": None, "scores": "softmax", "top_k": 3, **plain, **rest},
        {"logits": logits, "bias": bias, "scores": "sigmoid", "top_k": 5, **grouped, **rest},
        {"logits": logits, "bias": None, "scores": "softmax", "top_k": 4, **plain, "pdl": 0, "shared": "sigmoid"},
    ]


ROUTING = register(
    KernelRecord(
        op="etcuda::route_experts",
        owner=__name__,
        problem=problem_of,
        refuse=refuse,
        reference=routing_reference,
        cost=cost,
        samples=routing_samples,
        unserved=RoutingProblem(1, 8, 9, 1, 1),
    )
)
