"""Inductor's kernels are launched early, and start the kernel behind them, where torch and the GPU can."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
import torch
import torch._inductor.config

from etcuda.backend.inductor import early
from etcuda.target import TARGETS
from tests.backend.wrappers import generate_straight
from tests.passes.linear.quantized_programs import export, lowered

KNOWN = hasattr(torch._inductor.config.triton, "enable_pdl")
H200 = TARGETS["sm_90"]


def test_which_targets_and_releases_have_early_launches() -> None:
    assert early.can_launch_early(H200) == KNOWN
    for older in ("host", TARGETS["sm_80"], dataclasses.replace(H200, arch="sm_89")):
        assert not early.can_launch_early(older)
        with early.kernels_are_launched_early(older):
            assert not KNOWN or not torch._inductor.config.triton.enable_pdl


class Kinds(torch.nn.Module):
    """Pointwise, persistent and looped reductions, one of several reads, and one that only writes."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        norm = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        wide = (y - y.amax(-1, keepdim=True)).exp().sum(-1)
        return norm @ x.T, wide, torch.arange(64, device=x.device) * 2.0, (norm + y[:, :64]).relu()


@pytest.mark.skipif(not KNOWN, reason="this release of torch generates no such kernels")
def test_every_kernel_waits_first_and_says_so(tmp_path: pathlib.Path) -> None:
    program = lowered(export(Kinds(), torch.randn(32, 64), torch.randn(32, 20000)))
    code = generate_straight(program, tmp_path)
    assert len(code.sources) >= 4
    for name, source in code.sources.items():
        lines = source[source.index("@triton.jit") :].splitlines()
        waits, accesses = (
            [at for at, line in enumerate(lines) if any(word in line for word in words)]
            for words in (("gdc_wait(",), ("tl.load(", "tl.store("))
        )
        assert len(waits) == 1
        assert waits[0] < accesses[0]
        assert name.endswith("_pdl")
        assert name in code.cubins
