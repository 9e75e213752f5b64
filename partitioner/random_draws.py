"""Random operators as functions of a generator's state, call by call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from etcuda.kernels.random import distributions, uniform
from etcuda.partitioner.aliases import base_name
from etcuda.passes.graph.calls import arguments
from etcuda.passes.graph.edge_ops import underlying

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclasses.dataclass(frozen=True)
class Draw:
    """One call.

    Attributes:
        state: [2] int64, the seed and the offset.
        number: of the draw in its method.
        dtype: of the result.
        arguments: of the call by name.
    """

    state: Tensor
    number: int
    dtype: torch.dtype
    arguments: dict[str, Any]

    @property
    def size(self) -> Sequence[int]:
        """Shape of the result."""
        size: Sequence[int] | None = self.arguments.get("size")
        if size is None:
            size = self.arguments["self"].shape
        assert size is not None
        return size

    def make(self, distribution: Callable[..., Tensor], *parameters: Any) -> Tensor:
        """Numbers of a distribution that takes its state, a size and parameters."""
        return distribution(self.state, self.size, *parameters, dtype=self.dtype, draw=self.number)

    def of(self, distribution: Callable[..., Tensor], *names: str) -> Tensor:
        """The same, where the parameters are arguments of the call."""
        return self.make(distribution, *(self.arguments[name] for name in names))


def _normal(draw: Draw) -> Tensor:
    mean, std = draw.arguments["mean"], draw.arguments["std"]
    tensors = [each for each in (mean, std) if isinstance(each, Tensor)]
    size = torch.broadcast_tensors(*tensors)[0].shape if tensors else draw.size  # type: ignore[no-untyped-call]
    return distributions.normal(draw.state, size, mean, std, draw.dtype, draw.number)


def _bernoulli(draw: Draw) -> Tensor:
    p = draw.arguments.get("p", draw.arguments["self"])
    return draw.make(distributions.bernoulli, p)


def _randint(draw: Draw) -> Tensor:
    low, high = _range(draw.arguments, draw.dtype)
    if isinstance(high, int) and high - low == 2**63:
        return uniform.bits(draw.state, draw.number, draw.size, 63)
    return uniform.randint(draw.state, low, high, draw.size, draw.dtype, draw.number)


def _multinomial(draw: Draw) -> Tensor:
    a = draw.arguments
    return distributions.multinomial(draw.state, a["self"], a["num_samples"], a["replacement"], draw.number)


def _randperm(draw: Draw) -> Tensor:
    return distributions.randperm(draw.state, draw.arguments["n"], draw.dtype, draw.number)


DRAWS: dict[str, Callable[[Draw], Tensor]] = {
    "bernoulli": _bernoulli,
    "cauchy": lambda draw: draw.of(distributions.cauchy, "median", "sigma"),
    "exponential": lambda draw: draw.of(distributions.exponential, "lambd"),
    "geometric": lambda draw: draw.of(distributions.geometric, "p"),
    "log_normal": lambda draw: draw.of(distributions.log_normal, "mean", "std"),
    "multinomial": _multinomial,
    "normal": _normal,
    "normal_functional": _normal,
    "rand": lambda draw: draw.make(uniform.uniform),
    "rand_like": lambda draw: draw.make(uniform.uniform),
    "randint": _randint,
    "randint_like": _randint,
    "randn": lambda draw: draw.make(distributions.normal),
    "randn_like": lambda draw: draw.make(distributions.normal),
    "random": _randint,
    "randperm": _randperm,
    "uniform": lambda draw: draw.of(uniform.uniform, "from", "to"),
}
# Those whose results may be integers.
_WHOLE = frozenset({"bernoulli", "geometric", "multinomial", "randint", "randint_like", "random", "randperm"})


def is_draw(node: Node) -> bool:
    """Whether a call is of an operator that can be drawn from a state, in place or not."""
    return node.op == "call_function" and base_name(node) in DRAWS


def refuse_draw(node: Node) -> str | None:
    """Why a call, functional, of ATen or Edge, cannot be drawn from a state; ``None`` if it can."""
    op = underlying(node.target)
    name = "" if op is None else op._schema.name.removeprefix("aten::")
    value = node.meta.get("val")
    if op is None or name not in DRAWS:
        return f"expected one of {', '.join(DRAWS)}"
    if not isinstance(value, Tensor):
        return "expected one tensor as its result"
    taken = (*FLOATS, *INTEGERS) if name in _WHOLE else FLOATS
    if value.dtype not in taken:
        return f"expected a dtype of {_listed(taken)}, got {_listed([value.dtype])}"
    if free_unbacked_symbols(value.shape):
        return f"its size {list(value.shape)} depends on data, which only the running program knows"
    given = _values(node, op)
    if given.get("generator") is not None:
        return "it has a generator of its own"
    if name in ("randint", "randint_like", "random"):
        return _refuse_range(given, value.dtype)
    if name == "multinomial":
        return None if given["self"].dtype in FLOATS else f"expected floating probabilities, got {given['self'].dtype}"
    if name == "uniform" and not all(isinstance(given[side], int | float) for side in ("from", "to")):
        return "expected bounds that are numbers"
    if name == "geometric" and not 0 < given["p"] <= 1:
        return f"expected p in (0, 1], got {given['p']}"
    return None


def _values(node: Node, op: torch._ops.OpOverload) -> dict[str, Any]:
    given = arguments(node, op)
    return {name: torch.fx.map_arg(value, lambda n: n.meta.get("val")) for name, value in given.items()}


def _range(given: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """The least integer and the one after the greatest."""
    low, high = given.get("low", given.get("from")), given.get("high", given.get("to"))
    if high is None:
        # What ``random_`` without a range yields: every integer from 0 that the dtype holds.
        high = _greatest(dtype) + 1
    return (0 if low is None else low), high


def _greatest(dtype: torch.dtype) -> int:
    if dtype == torch.bool:
        return 1
    return round(2 / torch.finfo(dtype).eps) if dtype.is_floating_point else torch.iinfo(dtype).max


def _refuse_range(given: dict[str, Any], dtype: torch.dtype) -> str | None:
    low, high = _range(given, dtype)
    if not all(isinstance(each, int | torch.SymInt) for each in (low, high)):
        return "expected bounds that are integers"
    if isinstance(low, torch.SymInt) or isinstance(high, torch.SymInt):
        return None
    if low >= high:
        return f"expected a least integer below the bound, got {low} and {high}"
    if high - low >= 2**62 and (low, high) != (0, 2**63):
        return f"expected fewer than 2**62 integers, got {low} to {high}"
    least = -_greatest(dtype) - 1 if dtype.is_signed else 0
    if low < least or high - 1 > _greatest(dtype):
        return f"expected integers that {_listed([dtype])} holds, got {low} to {high - 1}"
    return None


def _listed(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
