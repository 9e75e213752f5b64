"""Engines: our kernels, transformers' formulas and ours compiled by torch.compile, flash-linear-attention."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.recurrent.shapes import CHANNELS, DIM, HEADS, HIDDEN, IN_ROWS, OUT_COLUMNS, normal
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.dense import launch as dense
from etcuda.kernels.dense.choose.select import choose as choose_dense
from etcuda.kernels.dense.problem import DenseProblem
from etcuda.kernels.linear.choose.select import choose as choose_linear
from etcuda.kernels.linear.choose.tune import make_weight
from etcuda.kernels.linear.problem import LinearProblem
from etcuda.kernels.linear.run import run_config
from etcuda.kernels.recurrent import launch
from etcuda.kernels.recurrent.reference.layer import gated_delta_layer_reference

Inputs = dict[str, Any]
Call = Callable[[Inputs], Any]


class UnsupportedError(Exception):
    """Why an engine is not measured in a cell."""


def fla_chunk() -> Call:
    """flash-linear-attention's prefill."""
    try:
        module: Any = importlib.import_module("fla.ops.gated_delta_rule")
    except Exception as error:  # The package imports much, and any of it may be missing or of another version.
        raise UnsupportedError(f"not installed: {type(error).__name__}: {str(error)[:100]}") from error

    def call(given: Inputs) -> Any:
        return module.chunk_gated_delta_rule(
            given["q"], given["k"], given["v"], g=given["g"], beta=given["beta"],
            initial_state=given["state"].float(), output_final_state=True, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip

    return call


def fla_step() -> Call:
    """flash-linear-attention's step, without convolution, gates and norm."""
    fla_chunk()
    module: Any = importlib.import_module("fla.ops.gated_delta_rule")

    def call(given: Inputs) -> Any:
        return module.fused_recurrent_gated_delta_rule(
            given["q"], given["k"], given["v"], g=given["g"], beta=given["beta"], initial_state=given["state"],
            output_final_state=True, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip

    return call


def transformers_function(module: str, name: str) -> Callable[..., Any]:
    """A function of transformers, compiled."""
    try:
        found: Any = importlib.import_module(f"transformers.models.{module}")
        function = getattr(found, name)
    except Exception as error:
        raise UnsupportedError(f"not installed: {type(error).__name__}: {str(error)[:100]}") from error
    compiled: Callable[..., Any] = torch.compile(function)
    return compiled


def transformers_chunk() -> Call:
    """transformers' formula of prefill, compiled."""
    function = transformers_function("qwen3_next.modeling_qwen3_next", "torch_chunk_gated_delta_rule")
    return lambda given: function(
        given["q"], given["k"], given["v"], g=given["g"], beta=given["beta"], initial_state=given["state"],
        output_final_state=True, use_qk_l2norm_in_kernel=True,
    )  # fmt: skip


def transformers_scan() -> Call:
    """transformers' formula of the scan, compiled."""
    function = transformers_function("mamba2.modeling_mamba2", "mamba2_chunk_scan")
    return lambda given: function(
        given["x"], given["dt"], given["a"], given["b"], given["c"], chunk_size=256, D=given["d"],
        dt_bias=given["dt_bias"], initial_states=given["state"], dt_softplus=True, return_final_states=True,
    )  # fmt: skip


def our(name: str) -> Call:
    """A launch of ours, which writes the state that it is given."""
    function: Any = getattr(launch, name)
    return lambda given: function(**given)


def our_layer() -> Call:
    """The step, launched early as in compiled programs."""
    return lambda given: launch.gated_delta_layer(**given, pdl=1)


def formula_layer() -> Call:
    """Our formula of the step, compiled."""
    compiled = torch.compile(gated_delta_layer_reference)

    def call(given: Inputs) -> Any:
        out, ring, state = compiled(**given)
        given["conv"].copy_(ring)
        given["state"].copy_(state)
        return out

    return call


def formula_conv() -> Call:
    """PyTorch's convolution and silu, compiled."""
    return torch.compile(
        lambda given: F.silu(
            F.conv1d(given["x"].transpose(1, 2), given["weight"].unsqueeze(1), padding=3, groups=CHANNELS)
        )[..., : given["x"].shape[1]]
    )


class WholeLayer:
    """A decode step from hidden state to hidden state: joined projection, the layer's kernel, output projection.

    Args:
        quantized: weights int4 in groups of 32; otherwise bf16.
        layer: what stands between the projections.
    """

    def __init__(self, quantized: bool, layer: Call) -> None:
        self._device, self._layer = LocalDevice.current(), layer
        shapes = ((IN_ROWS, HIDDEN), (HIDDEN, OUT_COLUMNS))
        if quantized:
            problems = [LinearProblem(1, n, k) for n, k in shapes]
            self.weights: list[Any] = [make_weight(problem, problem.n) for problem in problems]
            self._configs: list[Any] = [choose_linear(problem, self._device, 1).config for problem in problems]
            self.nbytes = sum(problem.weight_bytes for problem in problems)
        else:
            self.weights = [normal(n, k, scale=0.02) for n, k in shapes]
            self._configs = [choose_dense(DenseProblem(1, n, k), self._device).config for n, k in shapes]
            self.nbytes = sum(weight.nbytes for weight in self.weights)
        self._quantized = quantized

    def __call__(self, hidden: Tensor, given: Inputs) -> Tensor:
        """Hidden state [1, HIDDEN] to one like it; ``given`` has the state and the layer's small weights."""
        mixed = self._product(hidden, 0).unsqueeze(0)
        x, z, b, a = mixed.split([CHANNELS, HEADS * DIM, HEADS, HEADS], -1)
        out = self._layer(given | {"x": x, "z": z.unflatten(-1, (-1, DIM)), "b": b, "a": a})
        return self._product(out.view(1, OUT_COLUMNS), 1)

    def _product(self, x: Tensor, index: int) -> Tensor:
        weight, config = self.weights[index], self._configs[index]
        if self._quantized:
            return run_config(weight, x, config, None, "int8", self._device.num_sms, 1)
        return dense.dense_matvec(x, weight, None, "none", config.launch(1, self._device.num_sms, 1))
