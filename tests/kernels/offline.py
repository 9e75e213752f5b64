"""Kernels compiled for a GPU that is not here, as far as a test wants to look."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, make_backend

from etcuda.kernels.common.blocks import GROUPS_FIRST
from etcuda.kernels.linear.choose.configs import MatvecConfig
from etcuda.kernels.linear.triton import matvec
from tests.kernels.linear.linear_cases import Case

_KERNELS = {
    (1, 0): matvec.resident_kernel,
    (1, 1): matvec.resident_pdl,
    (0, 0): matvec.stepped_kernel,
    (0, 1): matvec.stepped_pdl,
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """What Triton knows of the number of a weight's rows: that 16 divides it, that it is 1, or nothing."""

    sixteen: bool = False
    one: bool = False


def compile_matvec(config: MatvecConfig, case: Case, tokens: int, rows: Rows, pdl: int, stage: str) -> str:
    """The code of an sm_90 kernel for a weight at ``stage``: "ttgir" or "ptx"."""
    function: Any = _KERNELS[config.resident, pdl]
    integers, halves = "*u8" if case.bits == 4 else "*i8", "*bf16"
    scale = {"fp16": "*fp16", "fp32": "*fp32", "codes": "*u8"}[case.storage]
    zero = {"symmetric": scale, "zero_point": "*u8", "minimum": scale}[case.offset]
    constants: dict[str, Any] = {
        "K": case.k, "BITS": case.bits, "GROUP": min(case.group_size, case.k), "OFFSET": case.offset,
        "SCALE_CODES": case.storage == "codes", "HAS_BIAS": case.bias, "ACTIVATION": "none", "TOKENS": tokens,
        "BLOCK_N": config.block_n, "BLOCKS": config.blocks, "STAGES": config.num_stages, "GROUPS_FIRST": GROUPS_FIRST,
    }  # fmt: skip
    types = {
        "x": "*i8" if config.quantized else halves, "x_scale": "*fp32", "x_sum": "*fp32", "qdata": integers,
        "scale": scale, "zero": zero, "scale_step": "*fp16", "zero_step": "*fp16", "bias": halves, "out": halves,
        "out_features": "i32", "num_tokens": "i32",
    }  # fmt: skip
    if not config.resident:
        constants["QUANTIZED"] = bool(config.quantized)
    if not config.quantized:
        types |= {"x_scale": halves, "x_sum": halves}
    # Triton takes an argument that is 1 for a constant.
    constants |= {"num_tokens": 1} if tokens == 1 else {}
    constants |= {"out_features": 1} if rows.one else {}
    whole = {"out_features"} if rows.sixteen else set()
    return compile_kernel(function, types, constants, config.num_warps, stage, whole)


def compile_kernel(
    function: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    num_warps: int,
    stage: str,
    whole: Collection[str] = (),
) -> str:
    """The code of an sm_90 kernel.

    Args:
        function: and the rest as of ``_compile``.
        stage: "ttgir" or "ptx".
    """
    for name, module, _ in _compile(function, types, constants, num_warps, whole, 90):
        if name == stage:
            return str(module)
    raise ValueError(f"expected a stage of Triton, got {stage!r}")


def shared_bytes(
    function: Any, types: Mapping[str, str], constants: Mapping[str, Any], num_warps: int, capability: int
) -> int:
    """Bytes of shared memory of a kernel for a GPU, ``capability`` being 90 for sm_90; it is compiled up to PTX."""
    for name, _, metadata in _compile(function, types, constants, num_warps, (), capability):
        if name == "ptx":
            return int(metadata["shared"])
    raise ValueError("expected Triton to compile to PTX")


def _compile(
    function: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    num_warps: int,
    whole: Collection[str],
    capability: int,
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Stages of a kernel: each one's name, code and metadata.

    Args:
        function: the kernel.
        types: of its arguments, as Triton writes them; pointers are aligned to 16 bytes.
        constants: its other arguments.
        num_warps: of a CTA.
        whole: integers that 16 divides.
        capability: of the GPU.
    """
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {name for name in names if signature[name].startswith("*")} | set(whole)
    source = ASTSource(
        function,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    options = backend.parse_options({"num_warps": num_warps})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    implementation = backend.get_codegen_implementation(options)
    module = source.make_ir(target, options, implementation, backend.get_module_map(), context)
    metadata = {"target": target, **options.__dict__}
    for name, run in stages.items():
        module = run(module, metadata)
        yield name, module, metadata
