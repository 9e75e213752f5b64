"""Which programs get rid of their complex numbers."""

from __future__ import annotations

import pytest
import torch

from etcuda.options import BackendConfig
from etcuda.partitioner.without_complex import without_complex
from etcuda.passes.complex_numbers.rewrite import has_complex
from tests.partitioner.programs import export

HOST = BackendConfig("host")
X = torch.randn(4)


def test_real_programs_are_left_alone() -> None:
    program = export(lambda x: x.sin(), X)
    assert without_complex(program, HOST) is program


def test_complex_ones_become_real() -> None:
    assert not has_complex(without_complex(export(lambda x: (x * 1j).abs(), X), HOST))


def test_what_cannot_be_rewritten_is_named_and_left() -> None:
    program = export(lambda x: (x * 1j, x.sin()), X)
    with pytest.warns(UserWarning, match=r"complex numbers are left to ExecuTorch: output mul is complex"):
        assert without_complex(program, HOST) is program
