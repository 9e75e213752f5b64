"""Names of weights that PyTorch's graphs cannot hold are refused; all others are taken."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from etcuda import CudaPartitioner, partition_report
from etcuda.errors import UnsupportedGraphError
from etcuda.partitioner.names import check_names

GOOD = ("weight", "0", "a b", "a'b", "\u00e9", "\t", "\x1b[31m", "a" * 3000, "class_", "lambda x", "$(pwd)", "%s{0}")
BAD = ("a\nb", "\r", 'a"b', "\\", "a\\nb", "a\0b", "\ud800", "class", '"), exit(3), ("')


class Named(nn.Module):
    """A parameter and a buffer, in a module, of one name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.inner = nn.Module()
        self.register_parameter(name, nn.Parameter(torch.ones(2), requires_grad=False))
        self.inner.register_buffer(name, torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * getattr(self, self.name) + getattr(self.inner, self.name)


def export(name: str) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(Named(name), (torch.ones(2),), strict=False)


@pytest.mark.parametrize("name", GOOD)
def test_a_name_that_pytorch_takes_is_taken(name: str) -> None:
    program = export(name)
    program.module()
    check_names(program)


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_pytorch_cannot_write_is_refused(name: str) -> None:
    program = export(name)
    # SystemExit: the name was run.
    with pytest.raises((SyntaxError, UnicodeError, AttributeError, SystemExit)):
        program.module()(torch.ones(2))
    with pytest.raises(UnsupportedGraphError, match=r"weight '(?s:.)*expected names without.*Give the weight") as error:
        CudaPartitioner("host").transform_for_pre_decomposition(program)
    assert ascii(name)[1:-1] in str(error.value)


def test_the_report_refuses_it_too() -> None:
    with pytest.raises(UnsupportedGraphError, match=r"weight 'a\\nb'"):
        partition_report(export("a\nb"), target="host")
