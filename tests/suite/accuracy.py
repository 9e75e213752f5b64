"""Whether the results of a case are right: against PyTorch in the same dtype and in fp64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.suite.batch import outputs_of
from tests.suite.cases import SuiteCase

# The largest difference of an operator, over the largest finite magnitude of the output; of a model ten times as much.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def expected_of(case: SuiteCase) -> tuple[list[Tensor], list[Tensor]]:
    """PyTorch's outputs in the case's dtype, and those computed in fp64 (the same ones for integer cases)."""
    with torch.no_grad():
        eager = outputs_of(case.model(*pytree.tree_map_only(Tensor, torch.clone, case.inputs)))
        if not case.dtype.is_floating_point:
            return eager, eager
        model = copy.deepcopy(case.model).double()
        wide = pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t.clone(), case.inputs)
        try:
            return eager, outputs_of(model(*wide))
        except (RuntimeError, NotImplementedError):
            return eager, eager


def wrong_because(got: list[Tensor], eager: list[Tensor], wide: list[Tensor], slack: float = 1.0) -> str:
    """What is wrong with the outputs of a case; empty if nothing.

    Shape and dtype are eager's. Integers are equal to eager's. Floating-point numbers have eager's NaNs and
    infinities, and each is as near as the tolerance, ``slack`` times it, to eager's or to that in fp64.
    """
    if len(got) != len(eager):
        return f"expected {len(eager)} outputs, got {len(got)}"
    for index, (one, near, far) in enumerate(zip(got, eager, wide, strict=True)):
        if one.shape != near.shape or one.dtype != near.dtype:
            return f"output {index}: expected {near.dtype} {list(near.shape)}, got {one.dtype} {list(one.shape)}"
        if not one.is_floating_point():
            if not torch.equal(one, near):
                return f"output {index}: {int((one != near).sum())} of {one.numel()} integers differ"
            continue
        finite = near.isfinite()
        if not torch.equal(one.isfinite(), finite) or not torch.equal(one.isnan(), near.isnan()):
            return f"output {index}: other NaNs or infinities than PyTorch's"
        if not torch.equal(one[near.isinf()], near[near.isinf()]):
            return f"output {index}: infinities of the other sign"
        a, b, c = one[finite].double(), near[finite].double(), far[finite].double()
        if a.numel() == 0:
            continue
        scale = max(float(b.abs().max()), 1e-30)
        error = float(torch.minimum((a - b).abs(), (a - c).abs()).max()) / scale
        if not error <= slack * TOLERANCE[one.dtype]:
            return f"output {index}: off by {error:.1e} of the largest magnitude"
    return ""
