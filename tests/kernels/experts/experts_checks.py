"""Checks of mixtures of experts: test_experts.py runs them in Triton's interpreter, tests/gpu on a GPU."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import etcuda.kernels  # noqa: F401  registers the operator
from etcuda.kernels.experts.configs import FewLaunch, Launch, ManyLaunch
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.registry import find
from tests.kernels.poison import Poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative errors: of roundings to a dtype, and of activations that are quantised to int8 twice.
_ROUNDING = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2e-4}
_INT8 = 2.5e-2
_GATES = {
    "silu": functional.silu,
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """What is between the products, as transformers' GPT-OSS has it or as the others have."""
    if activation != "swiglu_oai":
        return _GATES[activation](gate) * up
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


PARTS = ("qdata", "scale", "zero", "scale_step", "zero_step", "bias")


SHORT = FewLaunch(4, 32, 1, 4, 64, 1, 0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: sizes, formats, which experts are chosen, and how it is launched."""

    tokens: int = 1
    top_k: int = 2
    experts: int = 5
    hidden: int = 64
    width: int = 32
    format: GroupFormat | None = None
    activation: str = "silu"
    activation_dtype: str = "int8"
    chosen: str = "random"
    how: Launch = SHORT
    dtype: torch.dtype = torch.float16
    down_format: GroupFormat | None = None
    biased: bool = False

    def formats(self) -> tuple[GroupFormat | None, GroupFormat | None]:
        """Of the two matrices."""
        return self.format, self.down_format or self.format

    def weights(
        self, random: torch.Generator, stored: GroupFormat | None, *shape: int
    ) -> dict[str, Tensor]:  # fmt: skip
        """Stored tensors by name; ``qdata`` of weights as they are."""
        if stored is None:
            return {"qdata": (torch.randn(shape, generator=random) / math.sqrt(shape[-1])).to(self.dtype)}
        made = {}
        for name, (size, dtype) in stored.components(*shape).items():
            if name == "qdata":
                limits = torch.iinfo(dtype)
                made[name] = torch.randint(limits.min, limits.max + 1, size, generator=random, dtype=dtype)
            elif dtype == torch.uint8:
                made[name] = torch.randint(4, 12, size, generator=random, dtype=dtype)
            else:
                magnitude = 2.0 if name.startswith("zero") else 1.0
                # Values of a standard deviation near 1 / sqrt(K).
                step = magnitude / math.sqrt(shape[-1]) / (4 if stored.bits == 4 else 64)
                step = step / 8 if stored.scale_storage == "codes" else step
                made[name] = ((torch.rand(size, generator=random) + 0.5) * step).to(dtype)
        return made

    def indices(self, random: torch.Generator) -> Tensor:
        """Experts of each token; the last expert is chosen by none."""
        if self.chosen == "one":
            return torch.full((self.tokens, self.top_k), 1)
        if self.chosen == "twice":
            return torch.randint(0, self.experts - 1, (self.tokens, 1), generator=random).repeat(1, self.top_k)
        open_to = max(self.experts - 1, self.top_k)
        return torch.rand(self.tokens, open_to, generator=random).topk(self.top_k).indices

    def arguments(self) -> dict[str, Any]:
        """The operator's arguments."""
        random = torch.Generator().manual_seed(self.tokens + self.hidden + self.width)
        call: dict[str, Any] = {
            "x": torch.randn(self.tokens, self.hidden, generator=random).to(self.dtype).to(DEVICE),
            "indices": self.indices(random).to(DEVICE),
            "routing": torch.rand(self.tokens, self.top_k, generator=random).to(DEVICE),
        }
        shapes = {"gate_up": (2 * self.width, self.hidden), "down": (self.hidden, self.width)}
        for (name, shape), stored in zip(shapes.items(), self.formats(), strict=True):
            found = self.weights(random, stored, self.experts, *shape)
            if self.biased:
                found["bias"] = torch.randn(self.experts, shape[0], generator=random).to(self.dtype)
            for part in PARTS:
                key = name if part == "qdata" else f"{name}_{part}"
                call[key] = found[part].to(DEVICE) if part in found else None
        return call | {
            **{
                name: 0 if stored is None else stored.group_size
                for name, stored in zip(("group_size", "down_group_size"), self.formats(), strict=True)
            },
            "activation": self.activation, "activation_dtype": self.activation_dtype, "how": self.how.to_args(),
        }  # fmt: skip

    @property
    def tolerance(self) -> float:
        """The relative error that its roundings may make."""
        quantised = self.format is not None and self.activation_dtype == "int8"
        return _INT8 if quantised else 2 * _ROUNDING[self.dtype]


# How many rows each expert has: none, few, as many as an instruction takes and one more or less, and several tiles.
RAGGED = [0, 1, 31, 33, 63, 64, 65, 80, 81, 96, 97, 195]


def ragged(case: Case, counts: list[int]) -> tuple[Case, dict[str, Any]]:
    """The case with so many rows for each expert, in a random order, and the operator's arguments."""
    case = dataclasses.replace(case, tokens=sum(counts) // case.top_k, experts=len(counts))
    chosen = torch.cat([torch.full((count,), expert) for expert, count in enumerate(counts)])
    shuffled = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(1))]
    return case, case.arguments() | {"indices": shuffled.reshape(case.tokens, case.top_k).to(DEVICE)}


def int4(group_size: int = 32, storage: str = "fp16", offset: str = "zero_point") -> GroupFormat:
    made: GroupFormat = find("int4").format_type(group_size, storage, offset)
    return made


def int8(group_size: int = 32, storage: str = "fp16", offset: str = "symmetric") -> GroupFormat:
    made: GroupFormat = find("int8").format_type(group_size, storage, offset)
    return made


MANY = ManyLaunch(32, 16, 128, 4, 2, 32, 128, 4, 2, 0)
LONG = FewLaunch(32, 256, 1, 64, 256, 2, 0)
# As few programs as there can be: the interpreter takes its time for each.
WIDE = FewLaunch(32, 32, 1, 64, 64, 1, 0)
FEW_CASES = [
    Case(),
    Case(tokens=3, top_k=1, experts=7, hidden=72, width=40, activation="gelu_tanh"),
    Case(tokens=2, top_k=3, hidden=96, width=64, how=LONG, activation="gelu_erf"),
    Case(tokens=2, chosen="one"),
    Case(format=int4(), how=WIDE),
    Case(tokens=2, top_k=3, experts=6, hidden=96, width=96, format=int4(), how=WIDE),
    Case(tokens=2, top_k=1, hidden=128, width=96, format=int4(offset="symmetric"), how=LONG),
    Case(tokens=2, hidden=256, width=256, format=int4(64, "codes", "minimum"), how=LONG),
    Case(tokens=2, hidden=64, width=64, format=int8(), how=WIDE),
    Case(tokens=2, hidden=72, width=40, activation="swiglu_oai", biased=True, chosen="twice"),
    Case(tokens=2, hidden=96, width=32, format=int4(), activation="swiglu_oai", biased=True, how=WIDE),
    Case(tokens=2, hidden=256, width=256, format=int4(32, "codes", "minimum"), down_format=int8(16, "codes"), how=LONG),
    Case(hidden=64, width=32, format=int4(32, "fp16", "minimum"), down_format=int8(32, "fp16", "minimum"), how=WIDE),
]
MANY_CASES = [
    Case(how=MANY),
    Case(tokens=21, top_k=3, experts=7, hidden=72, width=40, how=MANY, activation="gelu_tanh"),
    Case(tokens=20, chosen="one", how=MANY),
    Case(tokens=11, hidden=96, width=64, format=int4(), how=MANY, activation_dtype="exact"),
    Case(tokens=9, top_k=1, hidden=160, width=96, format=int4(offset="symmetric"), how=MANY),
    Case(tokens=5, hidden=256, width=256, format=int4(64, "codes", "minimum"), how=MANY, activation_dtype="exact"),
    Case(tokens=9, hidden=128, width=32, format=int8(), how=MANY, activation_dtype="exact"),
    Case(tokens=20, chosen="one", format=int4(), how=MANY, activation_dtype="exact"),
    Case(tokens=9, hidden=72, width=40, how=MANY, activation="swiglu_oai", biased=True, chosen="twice"),
    Case(tokens=9, hidden=96, width=32, format=int4(), how=MANY, activation="swiglu_oai", biased=True),
    Case(
        tokens=5, hidden=256, width=256, format=int8(32, "codes", "minimum"), down_format=int8(16, "codes"), how=MANY,
        activation_dtype="exact",
    ),
]  # fmt: skip
CASES = [*FEW_CASES, *MANY_CASES]


def values(given: dict[str, Any], name: str, weight_format: GroupFormat | None) -> Tensor:
    """The weights of all experts in double precision."""
    if weight_format is None:
        whole: Tensor = given[name]
        return whole.double()
    stored = [given[name], *(given[f"{name}_{part}"] for part in PARTS[1:-1])]
    return weight_format.dequantize(*stored).double()


def expected(case: Case, given: dict[str, Any]) -> Tensor:
    """In double precision, one token and one expert after the other."""
    first, second = case.formats()
    gate_up, down = values(given, "gate_up", first), values(given, "down", second)
    out = torch.zeros(case.tokens, case.hidden, dtype=torch.float64, device=DEVICE)
    for token in range(case.tokens):
        for choice in range(case.top_k):
            expert = int(given["indices"][token, choice])
            products = gate_up[expert] @ given["x"][token].double()
            if case.biased:
                products += given["gate_up_bias"][expert].double()
            answer = down[expert] @ gated(*products.chunk(2), case.activation)
            if case.biased:
                answer += given["down_bias"][expert].double()
            out[token] += given["routing"][token, choice].double() * answer
    return out


def check(case: Case, given: dict[str, Any]) -> Tensor:
    """Compares a call with the formula; returns its result."""
    got: Tensor = torch.ops.etcuda.experts(**given)
    wanted = expected(case, given)
    assert (got.shape, got.dtype) == (wanted.shape, case.dtype)
    error = float((got.double() - wanted).norm() / wanted.norm())
    assert error < case.tolerance, f"relative error {error:.2e}"
    return got


class ExpertsChecks(Poisoned):
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_formula(self, case: Case) -> None:
        check(case, case.arguments())

    @pytest.mark.parametrize("case", [FEW_CASES[0], FEW_CASES[4], MANY_CASES[0], MANY_CASES[3]], ids=str)
    def test_a_token_has_the_bits_that_it_has_alone(self, case: Case) -> None:
        case = dataclasses.replace(case, tokens=2)
        given = case.arguments()
        whole = check(case, given)
        for token in range(2):
            one = {name: given[name][token : token + 1] for name in ("x", "indices", "routing")}
            assert torch.equal(torch.ops.etcuda.experts(**given | one)[0], whole[token])

    @pytest.mark.parametrize("case", [FEW_CASES[0], MANY_CASES[0]], ids=str)
    def test_no_tokens(self, case: Case) -> None:
        given = case.arguments()
        none = {name: given[name][:0] for name in ("x", "indices", "routing")}
        assert torch.ops.etcuda.experts(**given | none).shape == (0, case.hidden)

    def test_what_nobody_chose_is_not_read(self) -> None:
        for case in (FEW_CASES[0], MANY_CASES[1]):
            given = case.arguments()
            unread = {name: given[name].clone() for name in ("gate_up", "down")}
            for each in unread.values():
                each[-1] = math.nan
            assert torch.ops.etcuda.experts(**given | unread).isfinite().all()
