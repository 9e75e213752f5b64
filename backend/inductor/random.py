"""Code for Philox: ten rounds inside of the kernel that uses the numbers, in 64-bit unsigned integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch._inductor import ir, lowering
from torch._inductor.virtualized import ops

import etcuda.kernels.random  # noqa: F401  defines the operators
from etcuda.kernels.random.philox import KEY_STEPS, MASK, MULTIPLIERS, ROUNDS

_WIDE = torch.uint64
# Of the four words of a block, as unsigned integers, a result of 64 bits.
_Result = Callable[[Sequence[Any]], Any]


def register() -> None:
    """Tells Inductor how to lower the operators; a second call changes nothing."""
    table: dict[Any, Callable[..., Any]] = {
        torch.ops.etcuda.philox_bits.default: _bits,
        torch.ops.etcuda.philox_below.default: _below,
    }
    for op, lower in table.items():
        if op not in lowering.lowerings:
            declare: Callable[..., Any] = lowering.register_lowering(op, type_promotion_kind=None)
            declare(lower)


def _bits(state: Any, draw: int, size: Sequence[Any], bits: int, word: int) -> Any:
    def result(words: Sequence[Any]) -> Any:
        whole = ops.bitwise_or(ops.bitwise_left_shift(words[word], _constant(32)), words[word + 1])
        return _shifted(whole, 64 - bits)

    return _make(state, draw, size, result)


def _below(state: Any, draw: int, size: Sequence[Any], count: Any) -> Any:
    def result(words: Sequence[Any]) -> Any:
        """``etcuda.kernels.random.philox.philox_below_reference``."""
        n = ops.to_dtype(ops.index_expr(count, torch.int64), _WIDE) if _is_symbolic(count) else _constant(int(count))
        limb = _constant(2**31 - 1)
        x_1, x_0 = _shifted(words[0], 1), _shifted(words[1], 1)
        n_1, n_0 = _shifted(n, 31), ops.bitwise_and(n, limb)
        cross_1 = ops.add(ops.mul(x_1, n_0), _shifted(ops.mul(x_0, n_0), 31))
        cross_0 = ops.add(ops.mul(x_0, n_1), ops.bitwise_and(cross_1, limb))
        return ops.add(ops.mul(x_1, n_1), ops.add(_shifted(cross_1, 31), _shifted(cross_0, 31)))

    return _make(state, draw, size, result)


def _is_symbolic(count: Any) -> bool:
    return isinstance(count, sympy.Expr) and not count.is_Integer


def _make(state: Any, draw: int, size: Sequence[Any], result: _Result) -> Any:
    load = state.make_loader()

    def inner(index: Sequence[Any]) -> Any:
        place: Any = sympy.Integer(0)
        for each, length in zip(index, size, strict=True):
            place = place * length + each
        element = ops.to_dtype(ops.index_expr(place, torch.int64), _WIDE)
        seed = ops.to_dtype(load([sympy.Integer(0)]), _WIDE)
        offset = ops.add(load([sympy.Integer(1)]), ops.constant(int(draw), torch.int64))
        return ops.to_dtype(result(_philox(element, ops.to_dtype(offset, _WIDE), seed)), torch.int64)

    make: Callable[..., Any] = ir.Pointwise.create
    return make(device=state.get_device(), dtype=torch.int64, inner_fn=inner, ranges=list(size))


def _philox(element: Any, offset: Any, seed: Any) -> tuple[Any, ...]:
    """``etcuda.kernels.random.philox.philox``, where a product of two words is whole."""
    x, key = (*_halves(element), *_halves(offset)), _halves(seed)
    for index in range(ROUNDS):
        if index:
            grown = (ops.add(k, _constant(step)) for k, step in zip(key, KEY_STEPS, strict=True))
            key = tuple(_halves(each)[0] for each in grown)
        low_0, high_0 = _halves(ops.mul(x[0], _constant(MULTIPLIERS[0])))
        low_1, high_1 = _halves(ops.mul(x[2], _constant(MULTIPLIERS[1])))
        mixed_1 = ops.bitwise_xor(ops.bitwise_xor(high_1, x[1]), key[0])
        mixed_0 = ops.bitwise_xor(ops.bitwise_xor(high_0, x[3]), key[1])
        x = (mixed_1, low_1, mixed_0, low_0)
    return x


def _halves(value: Any) -> tuple[Any, ...]:
    """The lower and the upper word."""
    return ops.bitwise_and(value, _constant(MASK)), _shifted(value, 32)


def _shifted(value: Any, count: int) -> Any:
    return ops.bitwise_right_shift(value, _constant(count)) if count else value


def _constant(value: int) -> Any:
    return ops.constant(value, _WIDE)
