"""How the kernel is cut into CTAs, by a model of its time; no table is measured for it."""

from __future__ import annotations

import dataclasses
import math

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.device import Device
from etcuda.kernels.convolution.problem import ConvolutionProblem


@dataclasses.dataclass(frozen=True)
class ConvolutionConfig:
    """A CTA's tile: pixels x output channels, how deep a step is; steps that are loaded ahead; warps."""

    block_m: int
    block_n: int
    block_k: int
    num_stages: int
    num_warps: int

    def to_args(self) -> tuple[int, ...]:
        """The operator's trailing arguments."""
        return dataclasses.astuple(self)

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of the steps that are under way."""
        return (self.block_m + self.block_n) * self.block_k * itemsize * self.num_stages

    def check(self) -> None:
        """Checks that Triton takes it.

        Raises:
            KernelArgumentError: naming the number, what was expected and what it is.
        """
        for name, least in (("block_m", 16), ("block_n", 16), ("block_k", 16), ("num_stages", 1), ("num_warps", 1)):
            value: int = getattr(self, name)
            is_power = value & (value - 1) == 0 or name == "num_stages"
            if value < least or not is_power:
                raise KernelArgumentError(
                    f"convolution: {name}: expected {'a number' if name == 'num_stages' else 'a power of two'} of "
                    f"{least} or more, got {value}."
                )


CONFIGS = (
    ConvolutionConfig(16, 32, 128, 4, 2),
    ConvolutionConfig(32, 32, 128, 4, 4),
    ConvolutionConfig(32, 64, 64, 4, 4),
    ConvolutionConfig(64, 32, 64, 4, 4),
    ConvolutionConfig(64, 64, 64, 4, 4),
    ConvolutionConfig(128, 64, 64, 4, 4),
    ConvolutionConfig(64, 128, 64, 4, 4),
    ConvolutionConfig(128, 128, 64, 3, 8),
    # For few numbers to sum, and for fp32.
    ConvolutionConfig(32, 32, 32, 4, 4),
    ConvolutionConfig(64, 64, 32, 4, 4),
    ConvolutionConfig(128, 64, 32, 4, 4),
)

# What a step costs beside its products, in products of a tile of 64 x 64 x 64: its loads arrive late.
_LATENCY = 0.5


def choose(problem: ConvolutionProblem, device: Device) -> ConvolutionConfig:
    """The configuration of the least modelled time: rounds of CTAs over the SMs times the steps of one."""
    fitting = [c for c in CONFIGS if c.shared_bytes(problem.itemsize) <= device.shared_memory_per_block]
    return min(fitting or CONFIGS[-3:], key=lambda config: _cost(config, problem, device))


def _cost(config: ConvolutionConfig, problem: ConvolutionProblem, device: Device) -> tuple[float, int]:
    columns = math.ceil(problem.out_channels // problem.groups / config.block_n) * problem.groups
    ctas = math.ceil(problem.pixels / config.block_m) * columns
    channels = problem.channels // problem.groups
    # A step stays within a tap where it can: see the kernel.
    steps = problem.taps * channels // config.block_k
    if channels % config.block_k:
        steps = math.ceil(problem.depth / config.block_k)
    products = config.block_m * config.block_n * config.block_k / 64**3
    return (math.ceil(ctas / device.num_sms) * steps * (products + _LATENCY), ctas)
