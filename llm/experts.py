"""What transformers' mixtures of experts call for their products, registered as the implementation ``"etcuda"``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.errors import CheckpointError
from etcuda.kernels.experts.reference import SWIGLU_ALPHA, SWIGLU_LIMIT
from etcuda.kernels.formats.base import COMPONENTS
from etcuda.kernels.weights.tensor import CoalescedTensor

IMPLEMENTATION = "etcuda"
# Weights of a mixture of experts, all experts in one.
WEIGHTS = ("gate_up_proj", "down_proj")
# The operator's activations, by the classes that transformers and PyTorch have for them.
_ACTIVATIONS = {
    "SiLUActivation": "silu", "SiLU": "silu", "GELUActivation": "gelu_erf", "GELUTanh": "gelu_tanh",
}  # fmt: skip
# Names of the number of a token's experts in configurations.
_TOP_K = ("num_experts_per_tok", "top_k_experts", "moe_topk")
_MOE = "transformers.integrations.moe"


def is_mixture(module: Any) -> bool:
    """Whether a module is a mixture of experts that transformers' interface computes."""
    return hasattr(module, "_is_expert_parallel") and hasattr(module, "down_proj")


def top_k(config: Any) -> int:
    """Experts of a token, as a configuration with experts says.

    Raises:
        CheckpointError: it does not say so by a name that is known.
    """
    found = next((value for name in _TOP_K if (value := getattr(config, name, None)) is not None), None)
    if found is None:
        raise CheckpointError(
            f"model_type {config.model_type!r}: expected a token's number of experts as one of {', '.join(_TOP_K)}, "
            "got none. This architecture cannot be exported yet."
        )
    return int(found)


def refuse(module: Any) -> str | None:
    """Why the operator ``etcuda::experts`` does not compute a mixture, in words; ``None`` if it does."""
    if not module.has_gate:
        return "its experts have no gate"
    if module.has_post_expert_norm:
        return "its experts have norms"
    if _activation(module) is not None:
        return None
    if type(module)._apply_gate.__module__ != _MOE:
        return "its gate is computed by code of its own"
    return f"its activation is a {type(module.act_fn).__name__}"


def _activation(module: Any) -> str | None:
    """The operator's name of what a mixture computes between its products; ``None`` if it has none."""
    if type(module)._apply_gate.__module__ == _MOE:
        return _ACTIVATIONS.get(type(module.act_fn).__name__)
    if type(module).__name__ == "GptOssExperts" and (module.alpha, module.limit) == (SWIGLU_ALPHA, SWIGLU_LIMIT):
        return "swiglu_oai"
    return None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint has the matrices of a mixture, where the operator has [experts, rows, columns], the rows of the
    gate and then the others.

    Attributes:
        is_transposed: [experts, columns, rows].
        is_interleaved: rows of the gate and of the other half take turns.
    """

    is_transposed: bool
    is_interleaved: bool


def straighten(model: Any) -> None:
    """Gives the mixtures of a model on the meta device, whose matrices are transposed or interleaved, parameters as the
    operator takes them, and notes as ``file_layout`` how a checkpoint has them."""
    for module in model.modules():
        if not is_mixture(module) or refuse(module) is not None:
            continue
        layout = Layout(module.is_transposed, _activation(module) == "swiglu_oai")
        if layout == Layout(False, False):
            continue
        if layout.is_transposed:
            for name in WEIGHTS:
                old = getattr(module, name)
                made = old.new_empty((old.shape[0], old.shape[2], old.shape[1]))
                setattr(module, name, nn.Parameter(made, requires_grad=False))
        module.is_transposed, module.is_concatenated, module.file_layout = False, True, layout


def file_layout(model: Any) -> Layout | None:
    """How a checkpoint has the mixtures of a straightened model; ``None`` if as the model has them."""
    found = {module.file_layout for module in model.modules() if hasattr(module, "file_layout")}
    return next(iter(found), None)


def experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts' answers, weighted and summed: by ``etcuda::experts``, or where it does not serve them by one grouped
    product for each of their matrices.

    Args:
        module: the calling module, whose parameters are stacked by expert.
        hidden_states: [tokens, hidden_size].
        top_k_index: [tokens, top_k] integers, the experts of each token.
        top_k_weights: [tokens, top_k].

    Returns:
        [tokens, hidden_size].

    Raises:
        CheckpointError: quantised weights of experts that the operator does not serve.
    """
    reason = refuse(module)
    if reason is None:
        return _by_operator(module, hidden_states, top_k_index, top_k_weights)
    from transformers.integrations.moe import grouped_mm_experts_forward

    if isinstance(module.down_proj, CoalescedTensor):
        raise CheckpointError(
            f"{type(module).__name__}: expected unquantised experts, for {reason}. Leave them out of --quant."
        )
    if hidden_states.device.type == "meta":
        # The grouped product has no shape for fp32 there.
        return torch.empty_like(hidden_states)
    routing = top_k_weights.to(hidden_states.dtype)
    result: Tensor = grouped_mm_experts_forward(module, hidden_states, top_k_index, routing)
    return result


def _by_operator(module: Any, x: Tensor, indices: Tensor, routing: Tensor) -> Tensor:
    stored: list[Tensor | None] = []
    groups, activation_dtype = [], "exact"
    for name in WEIGHTS:
        weight = getattr(module, name)
        if isinstance(weight, CoalescedTensor):
            stored += [getattr(weight, part) for part in COMPONENTS]
            groups.append(weight.group_size)
            activation_dtype = weight.activation_dtype
        else:
            stored += [weight, None, None, None, None]
            groups.append(0)
        stored.append(getattr(module, f"{name}_bias", None))
    result: Tensor = torch.ops.etcuda.experts(
        x, indices, routing, *stored, *groups, _activation(module), activation_dtype, []
    )  # fmt: skip
    return result


def register() -> None:
    """Makes ``experts_implementation="etcuda"`` known to transformers. Idempotent."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(IMPLEMENTATION, experts)
