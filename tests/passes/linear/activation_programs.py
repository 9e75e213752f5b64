"""What the tests of fused norms and gates share: models as libraries write them, and a way to run programs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from tests.passes.linear.quantized_programs import (
    export,
    lowered,
    runnable,
)

FUSED = ("rms_norm_quantize", "gate_quantize")
PASS = "fuse_quantize"


class Llama(nn.Module):
    """weight * norm, the norm rounded first; also Qwen's."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + torch.randn(dim) / 4)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Gemma(Llama):
    """norm * (1 + weight), rounded once."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.float())).type_as(x)


class Gemma4(Llama):
    """norm * weight, rounded once; the root is a power."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.pow(wide.pow(2).mean(-1, keepdim=True) + self.eps, -0.5)
        return (wide * self.weight.float()).type_as(x)


class Bare(Llama):
    """Without a weight."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * wide).to(x.dtype)


class Added(Llama):
    """1 + weight in the dtype of the weight: computed in front of the norm."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * (1.0 + self.weight)


def torch_norm(dim: int) -> nn.Module:
    return nn.RMSNorm(dim, eps=1e-6)


NORMS: list[tuple[Callable[[int], nn.Module], float, float, bool]] = [
    (Llama, 1e-5, 0.0, True),
    (Gemma, 1e-5, 1.0, False),
    (Gemma4, 1e-5, 0.0, False),
    (Bare, 1e-5, 0.0, False),
    (Added, 1e-5, 0.0, True),
    (torch_norm, 1e-6, 0.0, False),
]


class Block(nn.Module):
    """Two layers of a residual stream, each behind a norm; what else is read is a parameter."""

    def __init__(self, norm: Callable[[int], nn.Module], read: str = "", act: Any = F.silu) -> None:
        super().__init__()
        self.first, self.second = norm(64), norm(64)
        self.q, self.k = nn.Linear(64, 64, bias=False), nn.Linear(64, 32, bias=False)
        self.gate, self.up = nn.Linear(64, 96, bias=False), nn.Linear(64, 96, bias=False)
        self.down = nn.Linear(96, 64, bias=False)
        self.read = read
        self.act = act

    def forward(self, x: Tensor, more: Tensor) -> Any:
        y = self.first(x)
        h = x + (self.q(y) if self.read != "other" else more)
        z = self.second(h)
        g = self.act(self.gate(z)) * self.up(z)
        out = self.down(g)
        if self.read in ("h", "other"):
            out = out + h
        if self.read == "all":
            return out + h, z, g, y
        return out


def inputs(dtype: torch.dtype, rows: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return tuple(torch.randn(rows, 64).to(dtype) for _ in range(2))  # type: ignore[return-value]


def run(program: ExportedProgram, model: nn.Module, *x: Tensor) -> Any:
    """The delegated program takes, in an order of its own, those inputs that it reads."""
    named = dict(zip(inspect.signature(model.forward).parameters, x, strict=True))
    return runnable(program)(*(named[name] for name in program.graph_signature.user_inputs))


def compare(model: nn.Module, *x: Tensor, **given: Any) -> ExportedProgram:
    """The rewritten program, after it was compared with the same program without this pass."""
    program = lowered(export(model, *x), **given)
    plain = lowered(export(model, *x), without=(PASS,), **given)
    got, wanted = (run(each, model, *x) for each in (program, plain))
    pairs = zip(got, wanted, strict=True) if isinstance(got, tuple | list) else [(got, wanted)]
    for one, other in pairs:
        # On the CPU both compute the same formula in the same order.
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    return program


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    named = zip(node.target._schema.arguments, node.args, strict=False)  # type: ignore[union-attr]
    return {argument.name: value for argument, value in named}


class Shapes(nn.Module):
    """Leading sizes, and a norm whose sizes are read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Llama(64)
        self.q = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.q(y.reshape(-1, 64)).reshape(y.shape)
