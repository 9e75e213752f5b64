"""Inductor's kernels start the kernel behind them before they end, where torch and the GPU can."""

from __future__ import annotations

import dataclasses

import torch
import torch._inductor.config

from etcuda.backend.inductor.capture import _early_launches
from etcuda.target import TARGETS

KNOWN = hasattr(torch._inductor.config.triton, "enable_pdl")


def test_which_targets_and_releases_have_early_launches() -> None:
    expected = {"triton.enable_pdl": True} if KNOWN else {}
    assert _early_launches(TARGETS["sm_90"]) == expected
    for older in (TARGETS["sm_80"], dataclasses.replace(TARGETS["sm_90"], arch="sm_89")):
        assert _early_launches(older) == {}
