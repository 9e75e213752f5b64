"""Kernels in CUDA C++, compiled in place of their stand-ins in Triton, for a GPU that need not be here."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest
import torch
from torch import nn
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource

import etcuda.kernels
import etcuda.kernels.cuda
from etcuda import CompileOptions, Int4CoalescedConfig, quantize_weights
from etcuda.backend.inductor.device import resource_usage
from etcuda.backend.inspect import inspect_program
from etcuda.backend.worker import client
from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations.hopper import reorder
from etcuda.kernels.activations.hopper import stand_in as reorder_stand_in
from etcuda.kernels.activations.reference import num_k_segments
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.cuda import Native, native_kernels
from etcuda.kernels.linear.choose.configs import MatmulConfig, matmul_candidates
from etcuda.kernels.linear.choose.select import Choice
from etcuda.kernels.linear.hopper import gemm, stand_in
from etcuda.kernels.linear.problem import LinearProblem
from etcuda.passes.linear import choose as choose_linear
from examples.export import export_program
from tests.exhaustive import pairs

DEVICE = LocalDevice("sm_90", 132, 227 << 10)
TYPES = {
    "x": "*bf16", "factor": "*fp32", "qdata": "*u8", "scale": "*fp16", "zero": "*u8", "bias": "*bf16", "out": "*bf16",
    "workspace": "*fp32", "semaphores": "*i32", "out_features_plus_2": "i32", "num_tokens_plus_2": "i32",
    "x_rows": "i32",
}  # fmt: skip


def candidates(m: int, offset: str = "zero_point") -> list[MatmulConfig]:
    found = matmul_candidates(LinearProblem(m, 43008, 5376, offset=offset), DEVICE)
    return [config for config in found if config.warpgroups]


def native(
    config: MatmulConfig, offset: str = "zero_point", bias_dtype: str | None = None, mma_dtype: str = "float16",
    activation_dtype: str = "int8",
) -> Native:  # fmt: skip
    return gemm.GemmConfig(
        k=5376, mma_dtype=mma_dtype, activation_dtype=activation_dtype, k_segments=1, offset=offset,
        block_m=config.block_m, warpgroups=config.warpgroups, num_stages=config.num_stages, out_dtype="bfloat16",
        bias_dtype=bias_dtype,
    ).native()  # fmt: skip


def compile_stand_in(made: Native, types: dict[str, str] = TYPES, kernel: Any = stand_in.hopper_gemm_pdl) -> Any:
    import triton

    source = ASTSource(kernel, types | {"MARK": "constexpr"}, {(len(types),): made.mark})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


@pytest.mark.parametrize(
    ("m", "offset", "mma_dtype", "activation_dtype"),
    pairs(
        [16, 32, 64, 128],
        ["zero_point", "symmetric", "minimum"],
        [("bfloat16", "int8"), ("float16", "int8"), ("float16", "exact")],
    ),
)
def test_candidates_compile_and_fit(m: int, offset: str, mma_dtype: str, activation_dtype: str) -> None:
    found = candidates(m, offset)
    assert found
    for config in found:
        with native_kernels():
            made = native(config, offset, "float32" if m == 16 else None, mma_dtype, activation_dtype)
            kernel = compile_stand_in(made, TYPES | {"x": {"bfloat16": "*bf16", "float16": "*fp16"}[mma_dtype]})
        assert kernel.metadata.name == "hopper_gemm_pdl"
        assert kernel.metadata.num_warps == 4 * config.warpgroups + 2
        assert kernel.metadata.shared <= DEVICE.shared_memory_per_block
        assert kernel.asm["ptx"].count("wgmma.mma_async") >= 8
        registers = resource_usage(kernel.asm["cubin"])[0]
        # In each quarter of a multiprocessor, those of its warps, and beside four warpgroups a warp of the kernel that
        # reorders bfloat16 as it is.
        beside = 32 if config.warpgroups == 4 and m < 64 else 0
        assert 32 * (-(-registers // 8) * 8 * -(-kernel.metadata.num_warps // 4) + beside) <= 16384


@pytest.mark.parametrize(
    ("dtype", "k", "activation_dtype", "block_m"),
    pairs(["bfloat16", "float16", "float32"], [256, 5376, 21504, 65280], [("int8", 64), ("int8", 128), ("exact", 16)]),
)
def test_the_reorder_kernel_compiles(dtype: str, k: int, activation_dtype: str, block_m: int) -> None:
    types = {
        "x": {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}[dtype], "reordered": "*fp16",
        "factor": "*fp32", "semaphores": "*i32", "num_tokens_plus_2": "i32", "reordered_rows": "i32",
    }  # fmt: skip
    made = reorder.native_reorder(k, dtype, activation_dtype, num_k_segments(k, activation_dtype, block_m))
    with native_kernels():
        kernel = compile_stand_in(made, types, reorder_stand_in.hopper_reorder_pdl)
    assert kernel.metadata.num_warps == made.threads // 32 <= 32
    assert resource_usage(kernel.asm["cubin"])[0] * made.threads <= 65536


@pytest.mark.parametrize("k", [256, 5376, 21504])
def test_the_reorder_kernel_for_bfloat16_as_it_is_compiles(k: int) -> None:
    types = {
        "x": "*bf16", "reordered": "*bf16", "factor": "*fp32", "semaphores": "*i32", "num_tokens_plus_2": "i32",
        "reordered_rows": "i32",
    }  # fmt: skip
    made = reorder.native_reorder_as_is(k)
    with native_kernels():
        kernel = compile_stand_in(made, types, reorder_stand_in.hopper_reorder_pdl)
    assert (kernel.metadata.num_warps, kernel.metadata.shared) == (4, 0)
    assert resource_usage(kernel.asm["cubin"])[0] <= 32
    assert reorder.ctas_as_is(k) * 2048 >= k


@pytest.mark.parametrize("gate", ["silu", "gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize(("k", "block_m"), [(256, 64), (21504, 64), (65280, 128)])
def test_the_reorder_kernels_of_a_gate_compile(gate: str, k: int, block_m: int) -> None:
    types = {
        "gate": "*bf16", "up": "*bf16", "reordered": "*fp16", "factor": "*fp32", "semaphores": "*i32",
        "gate_stride": "i32", "up_stride": "i32", "num_tokens_plus_2": "i32", "reordered_rows": "i32",
    }  # fmt: skip
    as_is = reorder.native_reorder_as_is(k, gate, k)
    for made in (reorder.native_reorder(k, "bfloat16", "int8", num_k_segments(k, "int8", block_m), gate, k), as_is):
        reordered = {"reordered": "*bf16"} if made is as_is else {}
        with native_kernels():
            kernel = compile_stand_in(made, types | reordered, reorder_stand_in.hopper_gate_reorder_pdl)
        assert resource_usage(kernel.asm["cubin"])[0] * made.threads <= 65536


def test_a_changed_source_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = native(candidates(16)[0])
    before = made.mark
    monkeypatch.setattr(etcuda.kernels.cuda, "_digest_of_sources", lambda: "0123456789abcdef")
    assert made.mark != before
    assert Native.find(made.mark) == made


def test_other_kernels_and_the_hook_are_left_alone() -> None:
    before = knobs.runtime.add_stages_inspection_hook
    made = native(candidates(16)[0])
    plain = compile_stand_in(made)
    assert "wgmma" not in plain.asm["ptx"]
    assert made.mark.partition("//")[2] in plain.asm["ptx"]
    with pytest.raises(ZeroDivisionError), native_kernels():
        raise ZeroDivisionError
    assert knobs.runtime.add_stages_inspection_hook is before
    assert Native.find("mov.u32 %r1, %r2;") is None


@pytest.mark.parametrize(
    "made",
    [
        native(candidates(16)[0]),
        reorder.native_reorder(5376, "float16", "int8", 2),
        reorder.native_reorder_as_is(512),
    ],
    ids=str,
)
def test_a_mark_has_no_capital_letters(made: Native) -> None:
    """PyTorch would take some for properties of an argument, fail, and copy all tensors as if the kernel wrote them."""
    assert made.mark == made.mark.lower()
    assert Native.find(made.mark) == made


def test_a_kernel_is_found_by_its_mark() -> None:
    made = native(candidates(64)[0], "minimum", "float16")
    assert Native.find(f"first line\n\t{made.mark}\n// the last") == made
    bare = dataclasses.replace(made, defines=())
    assert Native.find(bare.mark) == bare


def test_arguments_that_are_not_those_of_the_stand_in_are_refused() -> None:
    types = TYPES | {"x_rows": "i64"}
    with (
        native_kernels(),
        pytest.raises(KernelArgumentError, match=r"gemm\.cu: expected the arguments of its"),
    ):
        compile_stand_in(native(candidates(16)[0]), types)


def test_a_source_that_does_not_compile_is_an_error() -> None:
    made = dataclasses.replace(native(candidates(16)[0]), shared=1)
    message = r"(?s)gemm\.cu: expected NVRTC to compile it, got exit status 1:.*the host computes the same"
    with pytest.raises(KernelArgumentError, match=message):
        made.ptx("kernel")


@pytest.mark.parametrize(
    "change", [{"group_size": 64}, {"storage": "codes", "offset": "minimum"}, {"format_name": "int8"}, {"k": 5504}]
)  # fmt: skip
def test_other_weights_have_no_candidates(change: dict[str, Any]) -> None:
    problem = dataclasses.replace(LinearProblem(16, 1024, 5376), **change)
    assert not any(config.warpgroups for config in matmul_candidates(problem, DEVICE))
    other = LocalDevice("sm_89", 8, 1 << 17)
    assert not any(config.warpgroups for config in matmul_candidates(LinearProblem(16, 64, 512), other))


def test_sources_are_part_of_the_package() -> None:
    folder = pathlib.Path(etcuda.kernels.__file__).parent
    headers = (
        "dequantize", "epilogue", "factors", "fixup", "partials", "producer", "smem", "tile_scheduler"
    )  # fmt: skip
    expected = {"attention/hopper/decode.cu", "experts/hopper/grouped.cu", "linear/hopper/gemm.cu"}
    expected |= {f"cuda/{header}.cuh" for header in ("cluster", "gates", "int4", "ptx")}
    expected |= {f"experts/hopper/{header}.cuh" for header in ("activations", "layout", "results", "tiles", "weights")}
    expected |= {f"linear/hopper/{header}.cuh" for header in headers}
    expected |= {f"activations/hopper/{name}" for name in ("reorder.cu", "reorder_as_is.cu", "columns.cuh")}
    assert {path.relative_to(folder).as_posix() for path in folder.glob("**/*.cu*")} == expected


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("activation_dtype", ["int8", "exact"])
def test_pytorch_knows_what_the_kernels_of_a_program_write(
    activation_dtype: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it assumes that a kernel writes all of its tensors, and copies those that are read again."""
    logs: list[str] = []
    read = client.read_result

    def read_with_log(folder: pathlib.Path) -> Any:
        logs.append((folder / "log.txt").read_text(errors="replace"))
        return read(folder)

    monkeypatch.setattr(client, "read_result", read_with_log)
    config = candidates(16)[0]
    monkeypatch.setattr(choose_linear, "choose_matmul", lambda *a, **k: Choice("matmul", config, "this test"))
    model = nn.Linear(512, 96).to(torch.bfloat16).eval().requires_grad_(False)
    quantize_weights(model, Int4CoalescedConfig(activation_dtype=activation_dtype))
    program = torch.export.export(model, (torch.randn(20, 512).to(torch.bfloat16),))
    path = tmp_path / "model.pte"
    export_program({"forward": program}, "sm_90", path, CompileOptions(progress=False))
    (image,) = inspect_program(path).methods[0].delegates[0].images
    assert {"hopper_reorder_pdl", "hopper_gemm_pdl"} == set(image.kernels)
    assert logs
    assert not any("assuming every input is mutated" in log for log in logs)
