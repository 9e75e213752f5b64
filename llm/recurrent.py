"""What transformers' recurrent layers call for their convolutions and recurrences, as our operators.

transformers has no interface for these as it has for attention. Its models call functions of their own module, which
fall back to plain PyTorch where no package has kernels; while a model is called, ``routed`` puts ours in their place.
They are known by the kernels that they stand for, whose signatures the packages fix.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import etcuda.kernels  # noqa: F401  registers the operators
from etcuda.errors import CheckpointError
from etcuda.llm import delta_net
from etcuda.llm.recurrent_cache import Pending, RecurrentCacheLayer, RecurrentLayer

_ops = torch.ops.etcuda


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Keeps transformers from advising packages for functions in whose place a program has operators of ours."""
    logger = logging.getLogger("transformers.integrations.hub_kernels")

    def passes(record: logging.LogRecord) -> bool:
        return "is falling back to its reference" not in record.getMessage()

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def causal_conv1d_fn(
    hidden_states: Pending, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
) -> Tensor:
    """The convolution of [batch, channels, L], as ``causal_conv1d`` has it; ``weight`` is [channels, width]."""
    if activation not in (None, "silu", "swish"):
        raise CheckpointError(
            f"convolution: expected the activation silu or none, got {activation!r}. This architecture cannot be "
            "exported yet."
        )
    layer = hidden_states.layer
    assert layer.conv is not None
    x = hidden_states.x.transpose(1, 2)
    out, new = _ops.causal_conv(x, layer.conv, layer.positions, weight, bias, "silu" if activation else "none")
    layer.conv.copy_(new)
    result: Tensor = out.transpose(1, 2)
    return result


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: RecurrentCacheLayer,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Outputs and the new state, as ``fla`` has it."""
    state, positions = initial_state.state, initial_state.positions
    out: tuple[Tensor, Tensor] = _ops.gated_delta_rule(
        query, key, value, g, beta, state, positions, use_qk_l2norm_in_kernel
    )
    return out


def mamba_chunk_scan_combined(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: RecurrentCacheLayer | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Outputs [batch, L, heads, head_dim] and the new state, as ``mamba_ssm`` has it."""
    assert initial_states is not None
    low, high = dt_limit
    out: tuple[Tensor, Tensor] = _ops.selective_scan(
        hidden_states, dt, A, B, C, D, dt_bias, initial_states.state, initial_states.positions, float(low), float(high)
    )
    return out


def selective_state_update(
    state: RecurrentCacheLayer,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    z: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """One token's output [batch, heads, head_dim], as ``mamba_ssm`` has it: what is given for each head is expanded."""
    heads = [None if each is None else each[:, 0] for each in (D, dt_bias)]
    out, new = _ops.selective_scan(
        hidden_states.unsqueeze(1), dt[..., 0].unsqueeze(1), A[:, 0, 0], B.unsqueeze(1), C.unsqueeze(1), *heads,
        state.state, state.positions, 0.0, float("inf"),
    )  # fmt: skip
    state.update_recurrent_state(new)
    result: Tensor = out[:, 0]
    return result if z is None else result * nn.functional.silu(z)


# By the name of the package's function that a model's own one stands for.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "torch_chunk_gated_delta_rule": gated_delta_rule,
    "torch_recurrent_gated_delta_rule": gated_delta_rule,
    "mamba2_chunk_scan": mamba_chunk_scan_combined,
    "mamba2_selective_state_update": selective_state_update,
}

_RECURRENCES = tuple(name for name in _FUNCTIONS if name != "causal_conv1d_fn")


def functions_of(model: nn.Module) -> dict[tuple[str, str], Callable[..., Any]]:
    """What is put in the place of which functions, by module and name."""
    names = {type(module).__module__ for module in model.modules()}
    return {
        (name, function): ours
        for name in names
        for function, ours in _FUNCTIONS.items()
        if name.startswith("transformers.") and inspect.isfunction(getattr(sys.modules[name], function, None))
    }


def check(model: nn.Module, layer: RecurrentLayer) -> None:
    """Checks that what a layer calls is known here.

    Raises:
        CheckpointError: its convolution or its recurrence is a function of another name.
    """
    names = {name for _, name in functions_of(model)}
    known = ((bool(layer.channels), ("causal_conv1d_fn",)), (bool(layer.state), _RECURRENCES))
    for needed, expected in known:
        if needed and not names & set(expected):
            raise CheckpointError(
                f"layer {layer.layer}: expected a model whose code has one of {', '.join(expected)}, got a "
                f"{type(model).__name__} with {', '.join(sorted(names)) or 'none'}. This architecture cannot be "
                "exported yet."
            )


@contextlib.contextmanager
def routed(model: nn.Module) -> Iterator[None]:
    """One call of a model, or a trace of one, whose recurrent layers call our operators."""
    found = functions_of(model)
    before = {(module, name): getattr(sys.modules[module], name) for module, name in found}
    nets = [module for module in model.modules() if delta_net.is_delta_net(module)]
    try:
        for net in nets:
            delta_net.route(net)
        for (module, name), ours in found.items():
            setattr(sys.modules[module], name, ours)
        yield
    finally:
        for net in nets:
            delta_net.unroute(net)
        for (module, name), theirs in before.items():
            setattr(sys.modules[module], name, theirs)
