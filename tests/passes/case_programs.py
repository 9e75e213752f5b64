"""Many cases in one compiled program, run by ``executor_runner`` and compared with eager."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Sequence

import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor

from etcuda import CudaPartitioner, save_program
from etcuda.library import find_cublaslt, find_runner
from examples.cpp.session import from_bytes, to_bytes
from tests.partitioner.programs import export
from tests.partitioner.tagging import left
from tests.passes.decompositions.cases import Case
from tests.passes.decompositions.formulas import results


def check_cases(
    target: str,
    folder: pathlib.Path,
    cases: Sequence[Case],
    tolerance: float,
    wide: torch.dtype = torch.float64,
) -> None:
    """Asserts that all cases are one partition, and that each result is eager's.

    Args:
        target: of the partitioner; the machine must be able to run it.
        folder: gets the program and its values.
        cases: what to compute.
        tolerance: of floating results, relative to the largest of a tensor; others are equal. Narrow ones are compared
            with eager in ``wide``.
        wide: fp64, or fp32 where eager takes none.
    """

    def call(inputs: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
        return [results(case.call, *given) for case, given in zip(cases, inputs, strict=True)]

    # Clones, because an input that occurs twice would be one placeholder.
    inputs = [tuple(value.clone() for value in case.inputs) for case in cases]
    lowered = to_edge_transform_and_lower(export(call, inputs), partitioner=[CudaPartitioner(target)])
    assert {name: n for name, n in left(lowered).items() if name != "getitem"} == {"executorch_call_delegate": 1}
    save_program(lowered.to_executorch(), folder / "m.pte")
    wanted = [results(case.call, *case.inputs) for case in cases]
    flat = [value for values in wanted for value in values]
    got = _run(folder, [value for values in inputs for value in values], flat)
    # Eager rounds narrow numbers after every step, which a compiled program does not.
    precise = [results(case.call, *(_widened(value, wide) for value in case.inputs)) for case in cases]
    expected = [(case.name, value) for case, values in zip(cases, precise, strict=True) for value in values]
    for one, like, (name, other) in zip(got, flat, expected, strict=True):
        assert one.dtype == like.dtype, name
        _compare(name, one.to(other.dtype), other, tolerance)


def _widened(value: Tensor, wide: torch.dtype) -> Tensor:
    return value.to(wide) if value.dtype in (torch.bfloat16, torch.float16) else value


def _compare(name: str, got: Tensor, wanted: Tensor, tolerance: float) -> None:
    if not wanted.is_floating_point():
        assert torch.equal(got, wanted), name
        return
    finite = wanted[wanted.isfinite()].double().abs()
    atol = tolerance * (1 + float(finite.max()) if finite.numel() else 1)
    torch.testing.assert_close(
        got, wanted, rtol=tolerance, atol=atol, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


def _run(folder: pathlib.Path, inputs: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    paths = [folder / f"in_{index}" for index in range(len(inputs))]
    for path, value in zip(paths, inputs, strict=True):
        path.write_bytes(to_bytes(value))
    command = [find_runner(), "--model_path", folder / "m.pte", "--output_file", folder / "out"]
    cublaslt = find_cublaslt()
    environment = os.environ | ({} if cublaslt is None else {"ETCUDA_CUBLASLT": str(cublaslt)})
    done = subprocess.run(
        [*command, "--inputs", ",".join(map(str, paths))], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = [f"out.{index}" for index in range(len(like))] if len(like) > 1 else ["out"]
    return [from_bytes((folder / name).read_bytes(), value) for name, value in zip(names, like, strict=True)]
