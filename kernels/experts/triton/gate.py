"""What stands between the two products of an expert."""

from __future__ import annotations

import triton
import triton.language as tl

from etcuda.kernels.activations.triton.gate import activate


@triton.jit
def gated(gate, up, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """fp32 products of the gate and of the other half; the activated gate times the other in DTYPE, rounded where
    products, an activation and a multiplication one after another round."""
    gate = gate.to(DTYPE).to(tl.float32)
    up = up.to(DTYPE).to(tl.float32)
    if ACTIVATION == "swiglu_oai":
        # Numbers as in reference.py; NaN stays NaN.
        gate = tl.where(gate > 7.0, 7.0, gate)
        up = tl.where(up > 7.0, 7.0, up)
        up = tl.where(up < -7.0, -7.0, up) + 1.0
        active = gate / (1.0 + tl.exp(-1.702 * gate))
    else:
        active = activate(gate, ACTIVATION)
    return (active.to(DTYPE).to(tl.float32) * up).to(DTYPE)
