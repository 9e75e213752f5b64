"""Batch norms folded into the convolutions in front of them, and those that stay."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from tests.passes.convolution.test_route import calls, passed, run

aten = torch.ops.aten
NORM = aten._native_batch_norm_legit_no_training.default


class Normed(nn.Module):
    """A norm behind a convolution, either of them with and without its parameters."""

    def __init__(self, bias: bool, affine: bool, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, bias=bias) if conv is None else conv
        self.norm = nn.BatchNorm2d(5, affine=affine, eps=1e-3)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_numbers(bias: bool, affine: bool) -> None:
    model, x = Normed(bias, affine).eval(), torch.randn(2, 3, 7, 6)
    program = passed(model, x)
    assert not calls(program, NORM)
    torch.testing.assert_close(run(program, x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", [nn.Conv2d(5, 5, 3, groups=5), nn.Conv2d(5, 5, 3, dilation=2)], ids=str)
def test_whatever_computes_the_convolution(conv: nn.Module) -> None:
    model, x = Normed(True, True, conv).eval(), torch.randn(2, 5, 7, 6)
    program = passed(model, x)
    assert not calls(program, NORM)
    torch.testing.assert_close(run(program, x), model(x), rtol=1e-5, atol=1e-5)


class Twice(Normed):
    """The convolution's result is used beside the norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) + x  # type: ignore[no-any-return]


class Alone(Normed):
    """A norm behind something else."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.sin(self.conv(x)))  # type: ignore[no-any-return]


LEFT: dict[str, tuple[nn.Module, torch.dtype, str]] = {
    "used twice": (Twice(True, True), torch.float32, "the convolution's result is used elsewhere too"),
    "alone": (Alone(True, True), torch.float32, "there is no convolution in front of it"),
    "transposed": (
        Normed(True, True, nn.ConvTranspose2d(3, 5, 3)),
        torch.float32,
        "the convolution is transposed",
    ),
    "too large": (Normed(True, False), torch.float16, "beyond torch.float16"),
}


@pytest.mark.parametrize("name", LEFT)
def test_norms_that_stay(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, dtype, reason = LEFT[name]
    model, x = model.eval().to(dtype), torch.randn(2, 3, 7, 6).to(dtype)
    if name == "too large":
        model.norm.eps = 1e-12  # type: ignore[union-attr]
        model.norm.running_var.zero_()  # type: ignore[union-attr,operator]
    with caplog.at_level(logging.INFO, "etcuda.passes.convolution.fold_batch_norm"):
        program = passed(model, x)
    assert reason in caplog.text
    assert len(calls(program, NORM)) == 1


class SharedFilters(nn.Module):
    """One convolution in front of two norms, at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Normed(True, True), Normed(True, True)
        self.second.conv = self.first.conv

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


def test_filters_with_norms_of_their_own() -> None:
    model, x = SharedFilters().eval(), torch.randn(2, 3, 7, 6)
    program = passed(model, x)
    assert not calls(program, NORM)
    for got, wanted in zip(run(program, x), model(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
