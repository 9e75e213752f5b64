"""What the kernels use of Triton beyond its language: a release that changes it fails here, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend

from etcuda.kernels.activations.triton.gate import gate_quantize_kernel, gate_quantize_pdl
from etcuda.kernels.activations.triton.norm import rms_norm_quantize_kernel, rms_norm_quantize_pdl
from etcuda.kernels.activations.triton.quantize import quantize_kernel, quantize_pdl
from etcuda.kernels.activations.triton.reorder import reorder_kernel, reorder_pdl
from etcuda.kernels.attention.triton.split import attention_reduce_kernel, attention_reduce_pdl
from etcuda.kernels.common.blocks import INTERPRETED
from etcuda.kernels.common.pdl import choose_kernel, traceable
from tests.kernels.offline import compile_kernel


def test_the_interpreter_is_known_from_the_environment() -> None:
    assert INTERPRETED is False
    assert isinstance(quantize_kernel, triton.runtime.JITFunction)
    program = (
        "import triton; from etcuda.kernels.common.blocks import INTERPRETED, dp4a; "
        "print(INTERPRETED, isinstance(dp4a, triton.runtime.JITFunction))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_launchers_options() -> None:
    options = make_backend(GPUTarget("cuda", 90, 32)).parse_options({"launch_pdl": True, "maxnreg": 64})
    assert (options.launch_pdl, options.maxnreg) == (True, 64)
    plain = make_backend(GPUTarget("cuda", 90, 32)).parse_options({})
    assert (plain.launch_pdl, plain.maxnreg) == (False, None)


def test_which_kernel_is_launched() -> None:
    x = torch.zeros(1)
    assert choose_kernel(x, quantize_kernel, quantize_pdl, 0) == (quantize_kernel, {})
    assert choose_kernel(x, quantize_kernel, quantize_pdl, 1) == (quantize_pdl, {"launch_pdl": True})
    assert choose_kernel(x, quantize_kernel, quantize_pdl, 1, 96) == (
        quantize_pdl, {"launch_pdl": True, "maxnreg": 96}
    )  # fmt: skip
    assert traceable(x, quantize_kernel) is quantize_kernel
    with FakeTensorMode():
        stand_in = torch.zeros(1)
    for pdl, expected in enumerate((quantize_kernel, quantize_pdl)):
        kernel, options = choose_kernel(stand_in, quantize_kernel, quantize_pdl, pdl, 96)
        assert options == {}
        assert kernel.kernel is expected
    # The interpreter's functions are no JITFunction.
    assert choose_kernel(stand_in, len, max, 1) == (max, {})


KERNELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "quantize": (quantize_kernel, quantize_pdl, {"BLOCKS": 8}),
    "gate": (
        gate_quantize_kernel,
        gate_quantize_pdl,
        {"K": 256, "UP_OFFSET": 256, "ACTIVATION": "silu", "KEEP_Y": False, "BLOCKS": 8},
    ),
    "norm": (
        rms_norm_quantize_kernel,
        rms_norm_quantize_pdl,
        {"K": 256, "EPS": 1e-6, "WEIGHT_OFFSET": 0.0, "CAST_FIRST": True, "HAS_RESIDUAL": True, "HAS_WEIGHT": True,
         "KEEP_H": True, "KEEP_Y": True, "QUANTIZE": True, "BLOCKS": 8},
    ),
    "reorder": (
        reorder_kernel,
        reorder_pdl,
        {"K": 256, "WIDTH": 256, "BITS": 4, "QUANTIZE": True, "UNITS": 2, "SWEEP": 256},
    ),
    "attention": (
        attention_reduce_kernel,
        attention_reduce_pdl,
        {"HEAD_DIM": 64, "MAX_Q": 16, "CAUSAL": 2, "WINDOW": 0, "HAS_LEN": True, "BLOCK_S": 4, "CHUNK_D": 64,
         "RING": False, "SINKS": True},
    ),
}  # fmt: skip
POINTERS = {
    "x": "*bf16", "residual": "*bf16", "weight": "*bf16", "h": "*bf16", "y": "*bf16", "gate": "*bf16", "up": "*bf16",
    "q": "*i8", "scale": "*fp32", "total": "*fp32", "reordered": "*fp16", "factor": "*fp32", "out": "*bf16",
    "partial": "*fp32", "stats": "*fp32", "kv_len": "*i32", "positions": "*i32", "sinks": "*bf16",
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_that_may_be_launched_early_wait_and_the_others_do_not(name: str) -> None:
    """By its name the runtime launches a kernel early, so what it loads must come behind ``griddepcontrol.wait``."""
    plain, early, constants = KERNELS[name]
    assert early.__name__ == plain.__name__.removesuffix("_kernel") + "_pdl"
    for function, waits in ((plain, False), (early, True)):
        types = {argument: POINTERS.get(argument, "i32") for argument in function.arg_names}
        ptx = compile_kernel(function, types, constants, 4, "ptx")
        assert ("griddepcontrol.wait" in ptx) == waits
        if not waits:
            continue
        # What the host gave to an earlier kernel may be loaded in front: weights, lengths and positions.
        before = ptx[: ptx.index("griddepcontrol.wait")]
        free = {"norm", "attention"}
        assert name in free or "ld.global" not in before
        assert "st.global" not in before
