"""Calls in numbers, their floors, and why the kernels do not serve them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from etcuda.kernels.common.registry import Cost
from etcuda.kernels.recurrent.reference.states import keeps_each
from etcuda.torch_private import hint

MAX_WIDTH = 8
MAX_DIM = 256
# Tokens of a chunk of the formulas, in which the states of few tokens are.
MAX_SLOTS = 64


@dataclasses.dataclass(frozen=True)
class ConvProblem:
    """A causal convolution of each channel by itself.

    Attributes:
        batch: sequences.
        length: tokens of each.
        channels: of a token.
        width: of the filter.
        itemsize: bytes of a number.
    """

    batch: int
    length: int
    channels: int
    width: int
    itemsize: int = 2


@dataclasses.dataclass(frozen=True)
class DeltaProblem:
    """A gated delta rule.

    Attributes:
        batch: sequences.
        length: tokens of each.
        heads: of keys.
        value_heads: of values, and of states.
        key_dim: width of a key.
        value_dim: width of a value.
        itemsize: bytes of a number of q, k and v.
        state_itemsize: bytes of a number of the state.
        stored: states that are stored, of a ring more than one.
    """

    batch: int
    length: int
    heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    itemsize: int = 2
    state_itemsize: int = 2
    stored: int = 1


@dataclasses.dataclass(frozen=True)
class ScanProblem:
    """A selective scan.

    Attributes:
        batch: sequences.
        length: tokens of each.
        heads: of inputs, and of states.
        groups: of heads that share their b and c.
        key_dim: width of b and c, the state's second size.
        value_dim: width of a head.
        itemsize: bytes of a number of x, b and c.
        state_itemsize: bytes of a number of the state.
        stored: states that are stored, of a ring more than one.
    """

    batch: int
    length: int
    heads: int
    groups: int
    key_dim: int
    value_dim: int
    itemsize: int = 2
    state_itemsize: int = 2
    stored: int = 1


def conv_problem(x: Tensor, weight: Tensor) -> ConvProblem:
    """A call of ``causal_conv`` in numbers; dynamic sizes by their hints."""
    return ConvProblem(hint(x.shape[0]), hint(x.shape[1]), int(x.shape[2]), int(weight.shape[1]), x.dtype.itemsize)


def delta_problem(q: Tensor, v: Tensor, state: Tensor) -> DeltaProblem:
    """A call of ``gated_delta_rule`` in numbers; dynamic sizes by their hints."""
    sizes = (int(q.shape[2]), int(v.shape[2]), int(q.shape[3]), int(v.shape[3]))
    itemsizes = (q.dtype.itemsize, state.dtype.itemsize)
    return DeltaProblem(hint(q.shape[0]), hint(q.shape[1]), *sizes, *itemsizes, _stored(state, q.shape[1]))


def scan_problem(x: Tensor, b: Tensor, state: Tensor) -> ScanProblem:
    """A call of ``selective_scan`` in numbers; dynamic sizes by their hints."""
    sizes = (int(x.shape[2]), int(b.shape[2]), int(b.shape[3]), int(x.shape[3]))
    itemsizes = (x.dtype.itemsize, state.dtype.itemsize)
    return ScanProblem(hint(x.shape[0]), hint(x.shape[1]), *sizes, *itemsizes, _stored(state, x.shape[1]))


def layer_problem(x: Tensor, z: Tensor, state: Tensor) -> DeltaProblem:
    """A call of ``gated_delta_layer`` in numbers; dynamic sizes by their hints."""
    heads, value_dim, key_dim = int(z.shape[2]), int(z.shape[3]), int(state.shape[-2])
    key_heads = (int(x.shape[2]) - heads * value_dim) // (2 * key_dim)
    sizes = (key_heads, heads, key_dim, value_dim)
    return DeltaProblem(hint(x.shape[0]), 1, *sizes, x.dtype.itemsize, state.dtype.itemsize)


def _stored(state: Tensor, length: int | torch.SymInt) -> int:
    return hint(length) if keeps_each(state, length) else 1


def refuse_conv(problem: ConvProblem) -> str | None:
    """Why the kernel does not serve the problem; ``None`` if it does."""
    if not 1 <= problem.width <= MAX_WIDTH:
        return f"the filter's width is 1 to {MAX_WIDTH}, got {problem.width}"
    return None


def refuse_heads(problem: DeltaProblem | ScanProblem) -> str | None:
    """Why the kernels do not serve the problem; ``None`` if they do."""
    for name, size in (("key_dim", problem.key_dim), ("value_dim", problem.value_dim)):
        if not 1 <= size <= MAX_DIM:
            return f"{name} is 1 to {MAX_DIM}, got {size}"
    return None


def refuse_layer(problem: DeltaProblem) -> str | None:
    """Why the kernel of one token does not serve the problem, a whole head in registers; ``None`` if it does."""
    most = 1 << 15
    if problem.key_dim * problem.value_dim > most:
        return f"key_dim times value_dim is at most {most}, got {problem.key_dim * problem.value_dim}"
    return refuse_heads(problem)


def conv_cost(problem: ConvProblem) -> Cost:
    """Every input is loaded and stored once, the last ones once more; a product and a sum for each tap."""
    numbers = problem.batch * problem.channels
    moved = 2 * problem.length + problem.width + min(problem.length, problem.width)
    nbytes = (numbers * moved + problem.channels * problem.width) * problem.itemsize
    return Cost(nbytes, 2 * numbers * problem.length * problem.width)


def delta_cost(problem: DeltaProblem) -> Cost:
    """A state is loaded once, and stored for each that is kept; of a token it is decayed, read, written to and read
    again."""
    state = problem.batch * problem.value_heads * problem.key_dim * problem.value_dim
    keys = 2 * problem.heads * problem.key_dim
    tokens = problem.batch * problem.length
    moved = tokens * (keys + 2 * problem.value_heads * problem.value_dim) * problem.itemsize
    gates = 2 * tokens * problem.value_heads * 4
    return Cost((1 + problem.stored) * state * problem.state_itemsize + moved + gates, 7 * state * problem.length)


def scan_cost(problem: ScanProblem) -> Cost:
    """A state is loaded once, and stored for each that is kept; of a token it is decayed, written to and read."""
    state = problem.batch * problem.heads * problem.key_dim * problem.value_dim
    keys = 2 * problem.groups * problem.key_dim
    tokens = problem.batch * problem.length
    moved = tokens * (keys + 2 * problem.heads * problem.value_dim + problem.heads) * problem.itemsize
    return Cost((1 + problem.stored) * state * problem.state_itemsize + moved, 5 * state * problem.length)
