"""Compiles one job inside the worker: moves the graph to the target, generates code, builds the image."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.export.exported_program import ExportedProgram

from etcuda.backend.image import build_image
from etcuda.backend.inductor import capture, device, kernel_cache
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
    code = capture.generate(moved.module, moved.inputs, request.target, request.options.allow_tf32, progress)
    constants = [(constant.name, moved.name_of(constant.tensor)) for constant in code.constants]
    if request.is_part:
        _require_strides(code.output_strides, request.program)

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


def _require_strides(strides: list[tuple[Any, ...]], program: ExportedProgram) -> None:
    """Whoever reads an output of a part was compiled for the strides of the graph."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    expected = [
        tuple(expression(stride) for stride in values[name].stride()) for name in program.graph_signature.user_outputs
    ]
    if len(strides) == len(expected) and all(
        sympy.simplify(sympy.sympify(got) - sympy.sympify(wanted)) == 0
        for pair in zip(strides, expected, strict=True)
        for got, wanted in itertools.zip_longest(*pair, fillvalue=-1)
    ):
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
