"""Convolutions on the local GPU: through cuDNN, and by the program's own kernels where there is none."""

from __future__ import annotations

import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower

from etcuda import CudaPartitioner, save_program
from etcuda.library import find_cudnn
from examples.running import gpu_arch
from tests.kernels.convolution.convolution_checks import ConvolutionChecks
from tests.passes.convolution.models import LARGE, LAYERS, TOLERANCE, AllOf
from tests.run_program import run_program


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_with_cudnn_and_without(dtype: torch.dtype, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = gpu_arch()
    assert arch is not None
    model = AllOf(LAYERS | LARGE, dtype)
    inputs = model.inputs
    like = model(*inputs)
    program = torch.export.export(model, inputs)
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(arch)])
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    monkeypatch.setenv("ETCUDA_CUDNN", "off")
    without = run_program(tmp_path / "m.pte", inputs, like)
    print("own kernels", {name: f"{error:.1e}" for name, error in model.check(without, TOLERANCE[dtype]).items()})
    cudnn = find_cudnn()
    assert cudnn is not None, "expected the cuDNN that torch's wheel brings, found none"
    monkeypatch.setenv("ETCUDA_CUDNN", str(cudnn))
    with_cudnn = run_program(tmp_path / "m.pte", inputs, like)
    print("cuDNN", {name: f"{error:.1e}" for name, error in model.check(with_cudnn, TOLERANCE[dtype]).items()})
    # Sums in another order have other bits: somewhere in so many they are seen.
    assert any(not torch.equal(one, other) for one, other in zip(with_cudnn, without, strict=True))


class TestKernel(ConvolutionChecks):
    pass
