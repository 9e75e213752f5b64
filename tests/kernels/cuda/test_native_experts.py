"""The products of experts in CUDA C++, compiled for a GPU that need not be here, alone and in a program."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest
import torch
import triton
from executorch.exir import to_edge_transform_and_lower

from etcuda import CompileOptions, CudaPartitioner, save_program
from etcuda.backend.inductor.device import resource_usage
from etcuda.backend.inspect import inspect_program
from etcuda.kernels.cuda import native_kernels
from etcuda.kernels.experts.hopper.grouped import GroupedConfig
from etcuda.kernels.experts.hopper.stand_in import hopper_grouped_pdl
from tests.exhaustive import pairs
from tests.kernels.cuda.test_native import DEVICE, compile_stand_in
from tests.kernels.experts.experts_checks import Case, int4
from tests.passes.experts.test_route import program

TYPES = {
    "x": "*bf16", "order": "*i32", "tiles": "*i32", "qdata": "*u8", "scale": "*fp16", "zero": "*u8", "out": "*bf16",
    "x_rows": "i32", "out_rows": "i32",
}  # fmt: skip


def assembler_messages(ptx: str, folder: pathlib.Path) -> str:
    """What Triton's ptxas says about a kernel."""
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    done = subprocess.run(
        [tool, "-v", "-arch=sm_90a", source, "-o", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    )
    assert "Used" in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("bits", "offset", "k", "n", "gate"),
    pairs(
        [(4, "zero_point"), (4, "symmetric"), (4, "minimum"), (16, "symmetric")],
        [(2048, 512, "silu"), (512, 2048, ""), (7168, 2048, "gelu_erf")],
    ),
)
def test_the_kernel_compiles_and_fits(
    bits: int, offset: str, k: int, n: int, gate: str, tmp_path: pathlib.Path
) -> None:
    made = GroupedConfig(k, n, gate, 8, bits, offset).native()
    with native_kernels():
        kernel = compile_stand_in(made, TYPES, hopper_grouped_pdl)
    # Products of 32, 64, 80 and 96 rows, each for the columns that the loop takes at a time.
    found = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.bf16\.bf16", kernel.asm["ptx"])
    assert {size: found.count(size) for size in found} == dict.fromkeys(
        ("32", "64", "80", "96"), 16 if bits == 4 else 8
    )
    registers, spilled = resource_usage(kernel.asm["cubin"])
    assert spilled == 0
    # As many as layout.cuh distributes anew: with fewer, warps would wait for registers for ever.
    assert registers == 96
    # Nothing spills when ptxas finds too few registers for wgmmas one behind the other: it waits between them.
    assert "Performance Loss" not in assembler_messages(kernel.asm["ptx"], tmp_path)
    assert kernel.metadata.num_warps * 32 == made.threads == 640
    assert kernel.metadata.shared <= DEVICE.shared_memory_per_block


@pytest.mark.slow
def test_a_program_calls_the_kernel(tmp_path: pathlib.Path) -> None:
    case = Case(hidden=256, width=256, format=int4(), dtype=torch.bfloat16)
    _, exported, _ = program(case, 40, 64)
    options = CompileOptions(progress=False, hopper_experts=True)
    lowered = to_edge_transform_and_lower(exported, partitioner=[CudaPartitioner("sm_90", options)])
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    (image,) = inspect_program(tmp_path / "m.pte").methods[0].delegates[0].images
    assert {"count_pdl", "place_pdl", "hopper_reorder_pdl", "hopper_grouped_pdl", "combine_pdl"} <= set(image.kernels)
    assert "grouped_pdl" not in image.kernels
