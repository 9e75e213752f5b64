"""Checks of the sampling kernel: in Triton's interpreter with one CTA, on a GPU with as many as there are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from etcuda.kernels.sampling.configs import SamplingConfig, choose
from etcuda.kernels.sampling.problem import SamplingProblem
from etcuda.kernels.sampling.reference import draw_token_reference
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass(frozen=True)
class Case:
    vocab_size: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    spread: float = 3.0
    dtype: torch.dtype = torch.float32
    share: float = 1.0  # of the tokens that may be drawn

    def __str__(self) -> str:
        return (
            f"{self.vocab_size}-t{self.temperature}-k{self.top_k}-p{self.top_p}-m{self.min_p}-"
            f"{str(self.dtype).removeprefix('torch.')}-{self.share}"
        )

    def arguments(self, seed: int = 0) -> dict[str, Any]:
        random = torch.Generator().manual_seed(seed)
        logits = (self.spread * torch.randn(self.vocab_size, generator=random)).to(self.dtype)
        bits = torch.rand(-(-self.vocab_size // 32), 32, generator=random) < self.share
        words = (bits.long() << torch.arange(32)).sum(1)
        settings = torch.tensor([self.temperature, self.top_p, self.min_p])
        given = {
            "logits": logits,
            "settings": settings,
            "top_k": torch.tensor([self.top_k]),
            "state": torch.tensor([2**40 + seed, 2**33 + 5]),
            "allowed": torch.where(words >= 2**31, words - 2**32, words).to(torch.int32),
        }
        return {name: tensor.to(DEVICE) for name, tensor in given.items()}


SMALL = [
    Case(37, 0.0),
    Case(500, 0.0, share=0.3, dtype=torch.bfloat16),
    Case(500, 0.7),
    Case(1000, 1.3, top_k=7),
    Case(1000, 2.0, top_p=0.4),
    Case(1000, 2.0, min_p=0.2),
    Case(900, 2.0, top_k=50, top_p=0.8, min_p=0.05, share=0.5, dtype=torch.float16),
    Case(64, 1.0, top_k=1000, top_p=0.999999),
]
# Real ones, and one that needs the largest CTAs.
LARGE = [
    Case(vocab_size, *rest)
    for vocab_size in (32000, 128256, 151936, 262144, 500000)
    for rest in ((0.0,), (1.0,), (1.0, 40, 0.9), (0.8, 0, 0.95, 0.01), (1.0, 1), (1.5, 5000, 0.5))
]


def config_of(case: Case) -> SamplingConfig:
    # CTAs wait for one another, and the interpreter runs them one after another.
    return choose(SamplingProblem(case.vocab_size)) if DEVICE == "cuda" else SamplingConfig(1024, 8)


def drawn(given: dict[str, Any], config: SamplingConfig) -> Tensor:
    made: Tensor = torch.ops.etcuda.draw_token(**given, block=config.block, parts=config.parts)
    return made


class SamplingChecks(Poisoned):
    @pytest.mark.parametrize("case", SMALL + (LARGE if DEVICE == "cuda" else []), ids=str)
    def test_tokens_are_the_references(self, case: Case) -> None:
        for seed in range(20 if DEVICE == "cuda" else 4):
            given = case.arguments(seed)
            got, expected = drawn(given, config_of(case)), draw_token_reference(**given)
            assert torch.equal(got, expected), f"seed {seed}"

    def test_equal_logits_stay_together_and_the_first_is_taken(self) -> None:
        case = Case(300, 1.0, top_k=1)
        given = case.arguments()
        given["logits"] = torch.full_like(given["logits"], -1.0)
        given["logits"][[50, 70, 290]] = 2.0
        seen = set()
        for offset in range(20):
            given["state"][1] = offset
            seen.add(int(drawn(given, config_of(case))))
        assert seen == {50, 70, 290}
        given["settings"][0] = 0.0
        assert int(drawn(given, config_of(case))) == 50

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_what_is_no_number_gives_a_token(self, temperature: float) -> None:
        case = Case(100, temperature, top_k=5, top_p=0.5)
        for bad in (torch.nan, torch.inf, -torch.inf):
            given = case.arguments()
            given["logits"][:] = bad
            assert 0 <= int(drawn(given, config_of(case))) < 100

    @pytest.mark.parametrize("parts", [2, 64])
    def test_the_number_of_parts_changes_nothing(self, parts: int) -> None:
        case = Case(400, 2.0, top_k=30, top_p=0.7)
        given = case.arguments()
        config = dataclasses.replace(config_of(case), parts=parts)
        assert torch.equal(drawn(given, config), draw_token_reference(**given))
