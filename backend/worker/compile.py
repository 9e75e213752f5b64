"""Compiles one job inside the worker: moves the graph to the target, generates code, builds the image."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram

from etcuda.backend.image import build_image
from etcuda.backend.inductor import capture, device, kernel_cache, part_edges
from etcuda.backend.worker.client import default_cache_dir
from etcuda.backend.worker.job import JobRequest, JobResult
from etcuda.backend.worker.move import move_to_device
from etcuda.errors import CompileError
from etcuda.torch_private import expression

Progress = Callable[[str, int, int], None]


def compile_job(request: JobRequest, folder: pathlib.Path, progress: Progress) -> JobResult:
    """Compiles a job; ``folder`` takes the intermediate files.

    Raises:
        CompileError: code generation or the C++ compiler failed.
    """
    is_host = isinstance(request.target, str)
    if not isinstance(request.target, str):
        device.install(request.target)
        kernel_cache.install()
    where = torch.device("cpu") if is_host else torch.device("cuda", 0)
    progress("graph", 0, 1)
    moved = move_to_device(request.program, where, request.tied)
    options = request.options
    strides = _strides(request.program) if request.is_part else None
    code = capture.generate(moved.module, moved.inputs, request.target, options.allow_tf32, progress, strides)
    constants = [(constant.name, moved.name_of(constant.tensor)) for constant in code.constants]
    if strides is not None:
        _require_strides(code.output_strides, strides)

    progress("C++", 0, 1)
    image = build_image(
        code.wrapper,
        code.kernels if 'extern "C"' in code.kernels else "",
        code.cubins,
        cuda=not is_host,
        isa=request.options.host_isa if is_host else "x86-64",
        folder=folder,
        headers=pathlib.Path(request.options.cache_dir or default_cache_dir()) / "headers",
    )
    _require_known(image.imports, is_host)
    progress("C++", 1, 1)
    resources = {name: dataclasses.asdict(found) for name, found in code.resources.items()}
    return JobResult(image.data, constants, code.num_kernels, resources, code.assumptions)


def _strides(program: ExportedProgram) -> list[tuple[Any, ...]]:
    """Of what a part gives: whoever reads it was compiled for the strides of the graph."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    return [
        tuple(expression(stride) for stride in values[name].stride()) for name in program.graph_signature.user_outputs
    ]


def _require_strides(strides: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    if len(strides) == len(expected) and all(map(part_edges.are_equal, strides, expected)):
        return
    raise CompileError(
        f"a part that repeats: expected outputs with strides {expected}, the generated code has {strides}. Export with "
        "reroll=False, and please report it with the model."
    )


def _require_known(imports: tuple[str, ...], is_host: bool) -> None:
    from etcuda.shims import runtime_symbols

    missing = sorted(set(imports) - runtime_symbols("host" if is_host else "cuda"))
    if missing:
        raise CompileError(
            f"the generated code calls {', '.join(missing)}, which the runtime does not have. Expected only names of "
            "etcuda.shims. The operators behind them must be left to another backend: this is a gap in the "
            "partitioner's support rules; please report it with the model."
        )
