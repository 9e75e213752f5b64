"""Checks of routing: test_routing.py runs them in Triton's interpreter, tests/gpu on a GPU."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import etcuda.kernels  # noqa: F401  registers the operator
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: sizes, and how experts are chosen."""

    tokens: int = 1
    experts: int = 8
    top_k: int = 2
    groups: int = 1
    top_groups: int = 1
    group_score: str = "max"
    scores: str = "softmax"
    bias: bool = False
    normalize: bool = True
    scale: float = 1.0
    shared: str = "none"

    def arguments(self) -> dict[str, Any]:
        """The operator's arguments; no two experts of a token have one score."""
        random = torch.Generator().manual_seed(self.experts + self.tokens)
        columns = self.experts + int(self.shared == "sigmoid")
        logits = torch.randn(self.tokens, columns, generator=random)
        return {
            "logits": logits.to(DEVICE), "bias": torch.randn(self.experts, generator=random).to(DEVICE) / 4
            if self.bias else None, "scores": self.scores, "top_k": self.top_k, "groups": self.groups,
            "top_groups": self.top_groups, "group_score": self.group_score, "normalize": self.normalize,
            "epsilon": 1e-20, "scale": self.scale, "pdl": 0, "shared": self.shared,
        }  # fmt: skip


CASES = [
    Case(),
    Case(tokens=3, experts=7, top_k=7, normalize=False),
    Case(tokens=2, experts=60, top_k=4, bias=True),
    Case(experts=1, top_k=1, scores="sigmoid", normalize=False, scale=0.5),
    Case(tokens=2, experts=24, top_k=5, groups=4, top_groups=2, group_score="pair", scores="sigmoid", bias=True,
         scale=2.5),
    Case(tokens=2, experts=18, top_k=3, groups=3, top_groups=1, group_score="max", scores="softmax"),
    Case(experts=12, top_k=8, groups=6, top_groups=4, group_score="pair", scores="sigmoid"),
    Case(tokens=3, experts=8, top_k=4, shared="sigmoid", scale=2.0),
    Case(tokens=2, experts=24, top_k=5, groups=4, top_groups=2, group_score="pair", scores="sigmoid", bias=True,
         scale=2.5, shared="one"),
]  # fmt: skip


def expected(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """In double precision, one token after the other, by lists."""
    weights, chosen = [], []
    for columns in given["logits"].double().tolist():
        row = columns[:-1] if given["shared"] == "sigmoid" else columns
        most = max(row)
        powers = [math.exp(each - most) for each in row]
        scores = [power / sum(powers) for power in powers]
        if given["scores"] == "sigmoid":
            scores = [1 / (1 + math.exp(-each)) for each in row]
        bias = [0.0] * len(row) if given["bias"] is None else given["bias"].double().tolist()
        wanted = [a + b for a, b in zip(scores, bias, strict=True)]
        per = len(row) // given["groups"]
        parts = [sorted(wanted[start : start + per], reverse=True) for start in range(0, len(row), per)]
        best = [sum(part[: 2 if given["group_score"] == "pair" else 1]) for part in parts]
        groups = sorted(range(given["groups"]), key=lambda each: -best[each])[: given["top_groups"]]
        left = [each for each in range(len(row)) if each // per in groups]
        taken = sorted(left, key=lambda each: -wanted[each])[: given["top_k"]]
        shares = [scores[each] for each in taken]
        total = sum(shares) if given["normalize"] else 1.0
        share = {"none": [], "one": [1.0], "sigmoid": [1 / (1 + math.exp(-columns[-1]))]}[given["shared"]]
        weights.append([given["scale"] * each / total for each in shares] + share)
        chosen.append(taken + [len(row)] * len(share))
    return torch.tensor(weights, device=DEVICE), torch.tensor(chosen, device=DEVICE)


class RoutingChecks(Poisoned):
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_formula(self, case: Case) -> None:
        given = case.arguments()
        weights, chosen = torch.ops.etcuda.route_experts(**given)
        wanted, experts = expected(given)
        assert (weights.dtype, chosen.dtype) == (torch.float32, torch.int32)
        assert torch.equal(chosen.long(), experts)
        torch.testing.assert_close(weights, wanted.float(), rtol=1e-5, atol=1e-6)

    def test_what_is_not_finite_chooses_experts_that_there_are(self) -> None:
        given = Case(experts=5, top_k=3).arguments()
        for value in (math.nan, -math.inf, math.inf):
            logits = torch.full((2, 5), value, device=DEVICE)
            _, chosen = torch.ops.etcuda.route_experts(**given | {"logits": logits})
            assert ((chosen >= 0) & (chosen < 5)).all()

    def test_no_tokens(self) -> None:
        given = Case().arguments()
        weights, chosen = torch.ops.etcuda.route_experts(**given | {"logits": given["logits"][:0]})
        assert weights.shape == chosen.shape == (0, 2)
