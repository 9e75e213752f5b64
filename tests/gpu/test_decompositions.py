"""Formulas, Fourier transforms and complex numbers on the local GPU, many in one program, compared with eager."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from examples.running import gpu_arch
from tests.passes.case_programs import check_cases
from tests.passes.complex_numbers.models import Filter, Rotary, Spectrogram, arithmetic, transforms
from tests.passes.decompositions.cases import Case, adaptive_pooling, pooling, resizing, sampling
from tests.passes.decompositions.formulas import results
from tests.passes.decompositions.quantized_cases import quantized_cases

X = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(1))
A, B = X.flatten()[:24].reshape(4, 6), X.flatten()[24:48].reshape(4, 6)


def check(folder: pathlib.Path, cases: Iterable[Case], tolerance: float, wide: torch.dtype = torch.float64) -> None:
    arch = gpu_arch()
    assert arch is not None
    check_cases(arch, folder, list(cases), tolerance, wide)


@pytest.mark.parametrize("family", [pooling, adaptive_pooling, sampling, resizing], ids=lambda each: each.__name__)
def test_images(family: Callable[[], Iterable[Case]], tmp_path: pathlib.Path) -> None:
    check(tmp_path, family(), 1e-4)


def test_images_in_bf16(tmp_path: pathlib.Path) -> None:
    cases = [*pooling(), *adaptive_pooling()][::3] + [*sampling(), *resizing()][::5]
    narrow = [Case(each.name, each.call, tuple(value.bfloat16() for value in each.inputs)) for each in cases]
    running = [each for each in narrow if _runs(each)]
    assert 2 * len(running) > len(narrow)
    check(tmp_path, running, 3e-2)


def _runs(case: Case) -> bool:
    """Eager on the host lacks some operators in bf16."""
    try:
        results(case.call, *case.inputs)
    except NotImplementedError:
        return False
    return True


def test_quantised(tmp_path: pathlib.Path) -> None:
    # Older releases of torch quantise fp32 and narrower alone.
    check(tmp_path, quantized_cases(), 1e-6, wide=torch.float32)


def test_complex_numbers(tmp_path: pathlib.Path) -> None:
    models: list[tuple[nn.Module, Tensor]] = [
        (Rotary(), torch.randn(2, 5, 3, 8)),
        (Spectrogram(), torch.randn(2, 200)),
        (Filter(197), torch.randn(3, 197)),
    ]
    cases = [Case(type(model).__name__, model, (x,)) for model, x in models]
    cases += [Case("transforms", transforms, (X,)), Case("arithmetic", arithmetic, (A, B))]
    check(tmp_path, cases, 1e-4)
