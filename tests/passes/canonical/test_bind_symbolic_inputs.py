"""Numbers are computed from the sizes of tensors."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from etcuda.errors import PassError
from etcuda.passes.manager import run_passes
from tests.partitioner.programs import edge
from tests.passes.canonical.rewriting import HOST


def test_a_number_that_does_not_follow_from_a_size_is_named() -> None:
    program = edge(lambda x, n: x.expand(n, -1).sum(0) + n, torch.randn(1, 4), 3, dynamic=[None, Dim.DYNAMIC])
    with pytest.raises(PassError, match=r"'bind_symbolic_inputs' failed at node .*expected a number that follows"):
        run_passes(program, HOST)
