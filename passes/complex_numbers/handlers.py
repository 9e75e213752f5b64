"""What operators do with pairs."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from etcuda.passes.complex_numbers import pair as p
from etcuda.passes.complex_numbers.pair import REAL_OF, Pair, pair_of
from etcuda.passes.decompositions.record import existing

aten = torch.ops.aten
Handler = Callable[..., Any]

# Do the same with both parts.
_BOTH = existing(
    aten,
    "alias", "as_strided", "clone", "contiguous", "cumsum", "detach", "diagonal", "expand", "expand_as", "flip",
    "gather", "index.Tensor", "index_select", "lift_fresh_copy", "mean", "mean.dim", "movedim.int", "movedim.intlist",
    "narrow", "neg", "permute", "reflection_pad1d", "reflection_pad2d", "repeat", "replication_pad1d", "reshape",
    "reshape_as", "resolve_conj", "resolve_neg", "roll", "rot90", "select.int", "slice.Tensor", "squeeze",
    "squeeze.dim", "squeeze.dims", "sum", "sum.dim_IntList", "t", "transpose.int", "tril", "triu", "unfold",
    "unsqueeze", "view", "_unsafe_view", "zeros_like", "view_as", "flatten.using_ints", "unflatten.int",
)  # fmt: skip
_PRODUCTS = ("mm", "bmm", "matmul", "mv", "dot", "outer")
_BOTH_LISTS = existing(aten, "chunk", "split.Tensor", "split_with_sizes", "unbind.int", "tensor_split.sections")
_BOTH_OF_LIST = existing(aten, "cat", "concat", "stack", "hstack", "vstack")


def _both(op: Any, *args: Any, **kwargs: Any) -> Pair:
    kwargs.pop("dtype", None)
    return Pair(*(op(*_part(args, index), **_part(kwargs, index)) for index in (0, 1)))


def _both_lists(op: Any, *args: Any, **kwargs: Any) -> list[Pair]:
    return [Pair(*parts) for parts in zip(*_both(op, *args, **kwargs), strict=True)]


def _both_of_list(op: Any, values: Sequence[Any], *args: Any) -> Pair:
    like = next(value for value in values if isinstance(value, Pair))
    whole = [p.settle(pair_of(value), like.re.dtype, _shape(value)) for value in values]
    return Pair(*(op([value[index] for value in whole], *args) for index in (0, 1)))


def _shape(value: Any) -> Tensor:
    shape: Tensor = value.re if isinstance(value, Pair) else value
    return shape


def _part(values: Any, index: int) -> Any:
    """The arguments with one part in the place of each pair."""
    if isinstance(values, Pair):
        return values[index]
    if isinstance(values, dict):
        return {name: _part(value, index) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_part(value, index) for value in values)
    return values


def _add(a: Any, b: Any, alpha: Any = 1) -> Pair:
    return p.add(pair_of(a), p.mul(pair_of(b), pair_of(alpha)) if alpha != 1 else pair_of(b))


def _sub(a: Any, b: Any, alpha: Any = 1) -> Pair:
    return _add(a, b, -alpha)


def _mul(a: Any, b: Any) -> Pair:
    return p.mul(pair_of(a), pair_of(b))


def _div(a: Any, b: Any) -> Pair:
    return p.div(pair_of(a), pair_of(b))


def _pow(a: Any, exponent: Any) -> Pair:
    if isinstance(exponent, Pair | Tensor):
        return p.exp_of_product(_tensors(a), pair_of(exponent))
    return p.power(a, exponent)


def _pow_of_number(a: Any, exponent: Pair) -> Pair:
    logarithm = torch.log(torch.tensor(complex(a))).item()
    return p.exp(p.pair_tensors(p.mul(pair_of(logarithm), exponent), exponent))


def _tensors(value: Any) -> Pair:
    found = pair_of(value)
    return p.pair_tensors(found, Pair(found.re, found.re))


def _to_copy(value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if dtype is not None and not dtype.is_complex:
        return (value.re if isinstance(value, Pair) else value).to(dtype)
    if dtype is None:
        return Pair(value.re.clone(), value.im.clone())
    found = pair_of(value)
    return p.settle(found, REAL_OF[dtype], found.re)


def _full(shape: Any, value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Pair:
    number = complex(value)
    real = REAL_OF[dtype or torch.complex64]
    return Pair(*(torch.full(shape, part, dtype=real) for part in (number.real, number.imag)))


def _full_like(like: Any, value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Pair:
    shape = _shape(like)
    number, real = complex(value), REAL_OF[dtype] if dtype else shape.dtype
    return Pair(*(torch.full_like(shape, part, dtype=real) for part in (number.real, number.imag)))


def _where(condition: Tensor, a: Any, b: Any) -> Pair:
    one, other = pair_of(a), pair_of(b)
    return Pair(*(torch.where(condition, *_alike(one[i], other[i])) for i in (0, 1)))


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Numbers become tensors of the other's dtype where one is a tensor."""
    if isinstance(a, Tensor) and not isinstance(b, Tensor):
        return a, torch.full((), b, dtype=a.dtype, device=a.device)
    if isinstance(b, Tensor) and not isinstance(a, Tensor):
        return torch.full((), a, dtype=b.dtype, device=b.device), b
    return a, b


def _masked_fill(x: Pair, mask: Tensor, value: Any) -> Pair:
    return _where(mask, value, x)


def _pad(x: Pair, pad: Any, value: Any = 0) -> Pair:
    number = complex(value)
    return Pair(*(aten.constant_pad_nd.default(x[i], pad, (number.real, number.imag)[i]) for i in (0, 1)))


def _eq(a: Any, b: Any) -> Tensor:
    one, other = pair_of(a), pair_of(b)
    return torch.eq(*_alike(one.re, other.re)) & torch.eq(*_alike(one.im, other.im))


def _product(op: Any, a: Any, b: Any) -> Pair:
    """A product that is linear in both."""
    one, other = pair_of(a), pair_of(b)
    if p.is_zero(one.im):
        return Pair(op(one.re, other.re), op(one.re, other.im))
    if p.is_zero(other.im):
        return Pair(op(one.re, other.re), op(one.im, other.re))
    return Pair(op(one.re, other.re) - op(one.im, other.im), op(one.re, other.im) + op(one.im, other.re))


def _added_product(op: Any, c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Pair:
    return p.add(_mul(c, beta) if beta != 1 else pair_of(c), _mul(_product(op, a, b), alpha))


def _sgn(x: Pair) -> Pair:
    size = p.modulus(x)
    return Pair(*(torch.where(size == 0, 0, part / size) for part in x))


def _prod(x: Pair, dim: int, keepdim: bool = False, dtype: Any = None) -> Pair:
    """Halves are multiplied with each other until one element is left."""
    if not isinstance(x.re.shape[dim], int):
        raise NotImplementedError("a product along a dimension of dynamic size")
    while (size := x.re.shape[dim]) > 1:
        half = size // 2
        made = p.mul(*(Pair(*(part.narrow(dim, start, half) for part in x)) for start in (0, half)))
        rest = Pair(*(part.narrow(dim, 2 * half, size - 2 * half) for part in x))
        x = Pair(*(torch.cat(each, dim) for each in zip(made, rest, strict=True)))
    return x if keepdim else Pair(*(part.squeeze(dim) for part in x))


def _hyperbolic(x: Pair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.re.sinh(), x.re.cosh(), x.im.sin(), x.im.cos()


def _sinh(x: Pair) -> Pair:
    sinh, cosh, sin, cos = _hyperbolic(x)
    return Pair(sinh * cos, cosh * sin)


def _cosh(x: Pair) -> Pair:
    sinh, cosh, sin, cos = _hyperbolic(x)
    return Pair(cosh * cos, sinh * sin)


def _tanh(x: Pair) -> Pair:
    """With exponentials of what is not positive, which cannot overflow."""
    decay = (-2 * x.re.abs()).exp()
    sign = torch.where(x.re >= 0, 1.0, -1.0).to(x.re.dtype)
    phase = 2 * x.im
    below = 1 + decay * decay + 2 * decay * phase.cos()
    return Pair(sign * (1 - decay * decay) / below, 2 * decay * phase.sin() / below)


def _turned(function: Handler, x: Pair) -> Pair:
    """A trigonometric function from the hyperbolic one: f(x) = -i g(i x)."""
    made = function(Pair(-x.im, x.re))
    return Pair(made.im, -made.re)


_BY_NAME: dict[str, Handler] = {
    "view_as_complex": lambda x: Pair(x.select(-1, 0), x.select(-1, 1)),
    "view_as_real": lambda x: torch.stack([x.re, x.im], -1),
    "real": lambda x: x.re.clone(),
    "imag": lambda x: x.im.clone(),
    "complex": lambda re, im: Pair(re.clone(), im.clone()),
    "polar": p.polar,
    "_conj": p.conj,
    "_conj_physical": p.conj,
    "conj_physical": p.conj,
    "_neg_view": p.neg,
    "abs": p.modulus,
    "angle": p.angle,
    "exp": p.exp,
    "log": p.log,
    "sqrt": p.sqrt,
    "rsqrt": lambda x: p.reciprocal(p.sqrt(x)),
    "reciprocal": p.reciprocal,
    "square": lambda x: p.mul(x, x),
    "sgn": _sgn,
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": _tanh,
    "sin": functools.partial(_turned, _sinh),
    "cos": lambda x: _cosh(Pair(-x.im, x.re)),
    "tan": functools.partial(_turned, _tanh),
    "sigmoid": lambda x: p.reciprocal(p.add(pair_of(1.0), p.exp(p.neg(x)))),
    "add.Tensor": _add,
    "add.Scalar": _add,
    "sub.Tensor": _sub,
    "sub.Scalar": _sub,
    "rsub.Tensor": lambda a, b, alpha=1: _sub(b, a, alpha),
    "rsub.Scalar": lambda a, b, alpha=1: _sub(b, a, alpha),
    "mul.Tensor": _mul,
    "mul.Scalar": _mul,
    "div.Tensor": _div,
    "div.Scalar": _div,
    "pow.Tensor_Scalar": _pow,
    "pow.Tensor_Tensor": _pow,
    "pow.Scalar": _pow_of_number,
    "eq.Tensor": _eq,
    "eq.Scalar": _eq,
    "ne.Tensor": lambda a, b: ~_eq(a, b),
    "ne.Scalar": lambda a, b: ~_eq(a, b),
    "isnan": lambda x: x.re.isnan() | x.im.isnan(),
    "isinf": lambda x: x.re.isinf() | x.im.isinf(),
    "isfinite": lambda x: x.re.isfinite() & x.im.isfinite(),
    "where.self": _where,
    "masked_fill.Scalar": _masked_fill,
    "masked_fill.Tensor": _masked_fill,
    "constant_pad_nd": _pad,
    "prod.dim_int": _prod,
    "_to_copy": _to_copy,
    "full": _full,
    "zeros": lambda shape, **kwargs: _full(shape, 0, **kwargs),
    "ones": lambda shape, **kwargs: _full(shape, 1, **kwargs),
    "scalar_tensor": lambda value, **kwargs: _full([], value, **kwargs),
    "full_like": _full_like,
    "ones_like": lambda like, **kwargs: _full_like(like, 1, **kwargs),
    "addmm": functools.partial(_added_product, torch.mm),
    "baddbmm": functools.partial(_added_product, torch.bmm),
    **{name: functools.partial(_product, getattr(torch, name)) for name in _PRODUCTS},
}


def handlers() -> dict[object, Handler]:
    """For each operator, a function of its arguments, with a pair in the place of each complex tensor."""
    found: dict[object, Handler] = {operator.getitem: operator.getitem}
    for group, handler in ((_BOTH, _both), (_BOTH_LISTS, _both_lists), (_BOTH_OF_LIST, _both_of_list)):
        found |= {op: functools.partial(handler, op) for op in group}
    for name, function in _BY_NAME.items():
        found |= dict.fromkeys(existing(aten, name), function)
    return found
