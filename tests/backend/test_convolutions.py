"""Code for convolutions: cuDNN is asked first, and the program's own kernel stands behind it."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import ir
from torch.nn import functional as F

from etcuda.backend.inductor.convolutions import SHIM, CudnnConvolution
from etcuda.shims import COMPUTE_SHIMS
from tests.backend.wrappers import generate_straight
from tests.passes.convolution.test_route import passed


class Joined(nn.Module):
    """What is joined is read by a convolution too, and may be a part of a larger tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.third = nn.Conv2d(16, 4, 1, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.hardswish(self.first(x))
        z = F.relu(self.second(y) + y)
        return self.third(torch.cat([y, z * 2], 1)), z


@pytest.mark.slow
def test_cudnn_is_asked_first(tmp_path: pathlib.Path) -> None:
    program = passed(Joined().eval().half(), torch.randn(2, 8, 16, 16).half())
    wrapper = generate_straight(program, tmp_path)
    lines = list(map(str.strip, wrapper.body.splitlines()))
    asked = [index for index, line in enumerate(lines) if SHIM in line]
    assert len(asked) == 3
    numbers, absent = [], []
    for index in asked:
        found = re.search(rf"CHECK\({SHIM}\((.*), numbers_(\w+), &is_done_\2\)\);$", lines[index])
        assert found is not None, lines[index]
        tensors, name = found[1].split(", "), found[2]
        assert len(tensors) == 5
        absent.append([place for place, tensor in enumerate(tensors) if tensor == "nullptr"])
        assert lines[index - 1] == f"int32_t is_done_{name} = 0;"
        numbers.append(re.search(rf"numbers_{name}\[\] = {{(.*)}};", lines[index - 2]))
        # Nothing but the launch depends on the answer.
        assert lines[index + 1] == f"if (!is_done_{name}) {{"
        launch = [line for line in lines[index + 2 : index + 4] if line.startswith("call_convolution_kernel")]
        assert len(launch) == 1
        assert f"({tensors[0]}, {tensors[1]}, " in launch[0]
        assert lines[index + 4] == "}"
    assert [each and each[1] for each in numbers] == [
        "1, 1, 1, 1, 1, 1, 1, 0",
        "1, 1, 1, 1, 1, 1, 1, 1",
        "2, 2, 0, 0, 1, 1, 1, 0",
    ]
    assert absent == [[3], [2], [3]]
    # Every tensor that is read is dense, with channels innermost.
    for sizes, strides in re.findall(r"empty_strided\(4, (int_array_\d+), (int_array_\d+),", wrapper.body):
        shape, steps = (
            [int(number) for number in re.findall(r"(\d+)L", re.search(rf"{name}\[\] = (.*);", wrapper.body)[1])]  # type: ignore[index]
            for name in (sizes, strides)
        )
        tensor = torch.empty_strided(shape, steps, device="meta")
        assert tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def test_what_is_read_of_inductor() -> None:
    assert issubclass(CudnnConvolution, ir.UserDefinedTritonKernel)
    assert "codegen" in vars(ir.UserDefinedTritonKernel)
    assert callable(ir.ExternKernel.require_exact_strides)
    assert SHIM in COMPUTE_SHIMS["cuda"]
