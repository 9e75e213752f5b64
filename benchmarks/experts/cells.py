"""What is measured: sizes of models, weights and numbers of tokens."""

from __future__ import annotations

import dataclasses

from etcuda.kernels.experts.problem import ExpertsProblem

WEIGHTS = ("int4", "bf16")
FEW, MANY = (1, 2, 4, 8, 16), (128, 512, 2048, 8192)


@dataclasses.dataclass(frozen=True)
class Model:
    """A mixture of a model: experts, how many a token has, columns of a token, features of an expert."""

    name: str
    experts: int
    top_k: int
    hidden: int
    width: int

    def problem(self, tokens: int, weights: str) -> ExpertsProblem:
        """A call: int4 in groups of 32 with zero points and int8 activations for few tokens, or bf16."""
        sizes = (tokens, self.top_k, self.experts, self.hidden, self.width)
        if weights == "bf16":
            return ExpertsProblem(*sizes, 16, 0, "", "", "exact")
        return ExpertsProblem(*sizes)


MODELS = (Model("Qwen3.5-35B-A3B", 256, 8, 2048, 512), Model("Mixtral-8x7B", 8, 2, 4096, 14336))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of tokens of a model with some weights."""

    model: Model
    weights: str
    tokens: int


CELLS = [
    Cell(model, weights, tokens)
    for model in MODELS
    for weights in WEIGHTS
    for tokens in (*FEW, *MANY)
    # 90 GB of activations and weights of nothing new.
    if model.experts > 8 or tokens <= 2048
]
