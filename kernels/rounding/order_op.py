"""An operator that computes activations and puts them in order as ``etcuda::order_activation`` does.

On a CPU it computes the reference, on a GPU the kernel in CUDA C++ of ``kernels/int4``.
"""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from etcuda.errors import KernelArgumentError
from etcuda.kernels.int4 import launch
from etcuda.kernels.int4.check import check_order_of
from etcuda.kernels.rounding.check import check_gate
from etcuda.kernels.rounding.launch import rows_of
from etcuda.kernels.rounding.problem import RoundingProblem, refuse_order
from etcuda.kernels.rounding.reference import gate_order_reference


@triton_op("etcuda::gate_order", mutates_args=())
def gate_order(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation: str, block_m: int, overlap: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y = gate_activation(gate) * up, as of ``gate_quantize``, in the order that int4 products on tensor cores read.

    Args:
        gate: [..., K] bfloat16, float16 or float32, K a multiple of 256 below 65536; or gate and up side by side
            [..., 2 K].
        up: a tensor of the shape and dtype of ``gate``, or ``None`` if ``gate`` holds both.
        gate_activation: "silu", "gelu_tanh" or "gelu_erf".
        activation: "int8" or "exact"; this, ``block_m`` and ``overlap`` as of ``order_activation``.

    Returns:
        What ``order_activation(y, 4, activation, block_m, tiled=1)`` returns.

    Raises:
        KernelArgumentError: an argument is not one that the operator takes.
    """
    _check(gate, up, gate_activation, activation, block_m)
    if type(gate) is Tensor and gate.device.type == "cpu":
        return gate_order_reference(gate, up, gate_activation, activation, block_m)
    launch.require_device("gate_order", gate)
    more = None if up is None else rows_of(up)
    return launch.order_gated(rows_of(gate), more, gate_activation, activation, block_m, overlap)


def fake_gate_order(
    gate: Tensor, up: Tensor | None, gate_activation: str, activation: str, block_m: int, overlap: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the arguments; returns fake results."""
    k = _check(gate, up, gate_activation, activation, block_m)
    return launch.new_ordered(gate, gate.numel() // gate.shape[-1], k, activation, block_m, 1)


def _check(gate: Tensor, up: Tensor | None, gate_activation: str, activation: str, block_m: int) -> int:
    k = check_gate("gate_order", gate, up, gate_activation, "gate_activation")
    reason = refuse_order(RoundingProblem(1, k, gate.dtype.itemsize))
    if reason is not None:
        raise KernelArgumentError(f"gate_order: gate: {reason}. Pad the rows, or use order_activation with tiled=0.")
    check_order_of("gate_order", gate, k, 4, activation, block_m, 1)
    return k


gate_order.register_fake(fake_gate_order)
