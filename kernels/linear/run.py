"""A linear layer on the current GPU: what eager mode, the tuner and the benchmarks run."""

from __future__ import annotations

import functools

from torch import Tensor

from etcuda.kernels.activations.launch import quantize
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.memory import dense_rows
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.linear import launch
from etcuda.kernels.linear.choose.configs import MatmulConfig, padded
from etcuda.kernels.linear.choose.select import Choice, choose
from etcuda.kernels.linear.choose.table import Config
from etcuda.kernels.linear.problem import LinearProblem, refuse
from etcuda.kernels.linear.reference import linear_reference


def run_linear(weight: StoredWeight, x: Tensor, bias: Tensor | None, activation_dtype: str) -> Tensor:
    """x [..., K] times a weight on the current GPU by what ``choose`` says; by the reference what no kernel serves."""
    rows = dense_rows(x)
    problem = LinearProblem.of(weight.format, rows.shape[0], weight.n, weight.k, activation_dtype, x.dtype)
    if refuse(problem) is not None:
        stored = weight.format
        return linear_reference(type(stored), x, *weight.tensors, bias, stored.group_size, activation_dtype)
    device = LocalDevice.current()
    config = _cached_choice(problem, device).config
    out = run_config(weight, rows, config, bias, activation_dtype, device.num_sms, 0)
    return out.reshape(*x.shape[:-1], weight.n)


def run_config(
    weight: StoredWeight, x: Tensor, config: Config, bias: Tensor | None, activation_dtype: str, num_sms: int, pdl: int
) -> Tensor:
    """x [M, K], dense, through a kernel and configuration that serve it; [M, N]."""
    if isinstance(config, MatmulConfig):
        return launch.matmul(weight, x, config.launch(num_sms, pdl), bias, activation_dtype)
    values = quantize(x, pdl) if config.quantized else x
    return launch.matvec(weight, values, config.launch(padded(x.shape[0]), num_sms, pdl), bias, x.dtype)


@functools.lru_cache(maxsize=4096)
def _cached_choice(problem: LinearProblem, device: LocalDevice) -> Choice:
    return choose(problem, device, pdl=0)
