"""Who is measured: our kernels, PyTorch's, and those of the installed executorch wheel."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from benchmarks.attention.cells import FLEX_FAMILIES, FLEX_LENGTHS, Cell
from etcuda.kernels.attention.op import attention_split, attention_tiled
from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, MAX_QUERY, UPPER_LEFT
from etcuda.kernels.attention.select import choose_split, choose_tiled
from etcuda.kernels.common.device import LocalDevice

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
OURS = ("etcuda split", "etcuda tiled")


class UnsupportedError(Exception):
    """Why an engine is not measured in a cell."""


def ours(kernel: str, cell: Cell, device: LocalDevice) -> Call:
    """One of our kernels, configured as export would."""
    problem = cell.problem
    split = kernel == "etcuda split"
    if split and problem.l_q > MAX_QUERY:
        raise UnsupportedError(f"L_q is at most {MAX_QUERY}")
    if not split and (problem.l_q == 1 or cell.filled):
        raise UnsupportedError("decode is the split kernel's")
    config = dataclasses.astuple((choose_split if split else choose_tiled)(problem, device).config)
    lengths = torch.full((problem.batch,), cell.filled, dtype=torch.int32, device="cuda") if cell.filled else None
    operator = attention_split if split else attention_tiled
    scale = problem.head_dim**-0.5

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        numbers = (scale, problem.causal, problem.window, 0.0)
        result: Tensor = operator(q, k, v, None, lengths, None, *numbers, *config)
        return result

    return call


def torch_backend(backend: SDPBackend, cell: Cell, device: LocalDevice) -> Call:
    """``scaled_dot_product_attention`` held to one backend."""
    problem = cell.problem
    keywords: dict[str, Any] = {"enable_gqa": problem.group > 1}
    if problem.window:
        keywords["attn_mask"] = _window_mask(problem.l_q, problem.window)
    elif problem.causal == UPPER_LEFT:
        keywords["is_causal"] = True
    elif problem.causal == LOWER_RIGHT:
        keywords["attn_mask"] = causal_lower_right(problem.l_q, problem.l_kv)
    if backend == SDPBackend.MATH and problem.l_q * problem.l_kv > 1 << 26:
        raise UnsupportedError("its logits would fill the memory")
    repeat = backend == SDPBackend.EFFICIENT_ATTENTION and problem.group > 1
    if repeat:
        keywords["enable_gqa"] = False

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if repeat:
            k, v = (x.repeat_interleave(problem.group, 1) for x in (k, v))
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **keywords)

    return call


def flex(cell: Cell, device: LocalDevice) -> Call:
    """torch.compile of flex attention."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    problem = cell.problem
    lengths = FLEX_LENGTHS[:1] if cell.kind == "decode" else FLEX_LENGTHS
    if problem.batch > 1 or problem.l_kv not in lengths or cell.family not in FLEX_FAMILIES:
        raise UnsupportedError("measured in a few cells only")
    # After so many shapes Dynamo would give up compiling and run it uncompiled.
    torch._dynamo.reset()
    shift = problem.l_kv - problem.l_q if problem.causal == LOWER_RIGHT else 0

    def keep(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        near = n <= m + shift
        return near & (n > m + shift - problem.window) if problem.window else near

    mask = None if problem.causal == FULL else create_block_mask(keep, None, None, problem.l_q, problem.l_kv)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=problem.group > 1)


def executorch(name: str, cell: Cell, device: LocalDevice) -> Call:
    """A Triton kernel of the executorch wheel."""
    problem = cell.problem
    if name == "sdpa_decode_splitk" and problem.l_q != 1:
        raise UnsupportedError("decode only")
    if name == "sdpa_small_query_splitk" and not 2 <= problem.l_q <= 4:
        raise UnsupportedError("2 to 4 query rows only")
    if name == "sdpa" and problem.l_q == 1 and problem.l_kv > 4096:
        raise UnsupportedError("one split a head: measured up to 4096 keys")
    importlib.import_module("executorch.backends.cuda.triton")
    operator = getattr(torch.ops.triton, name)
    mask = None
    if problem.window:
        mask = _window_mask(problem.l_q, problem.window)[None, None]
    elif problem.causal == LOWER_RIGHT:
        mask = torch.ones(1, 1, problem.l_q, problem.l_kv, dtype=torch.bool, device="cuda")
        mask = mask.tril(problem.l_kv - problem.l_q)
    is_causal = problem.causal == UPPER_LEFT and mask is None

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = operator(q, k, v, mask, 0.0, is_causal, 0.0, problem.group > 1)
        return result

    return call


def _window_mask(length: int, window: int) -> Tensor:
    near = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()
    return near.triu(1 - window)


ENGINES: dict[str, Callable[[Cell, LocalDevice], Call]] = {
    "etcuda split": functools.partial(ours, "etcuda split"),
    "etcuda tiled": functools.partial(ours, "etcuda tiled"),
    "torch flash": functools.partial(torch_backend, SDPBackend.FLASH_ATTENTION),
    "torch cuDNN": functools.partial(torch_backend, SDPBackend.CUDNN_ATTENTION),
    "executorch split-K": functools.partial(executorch, "sdpa_decode_splitk"),
    "executorch small query": functools.partial(executorch, "sdpa_small_query_splitk"),
    "executorch tiled": functools.partial(executorch, "sdpa"),
    "torch efficient": functools.partial(torch_backend, SDPBackend.EFFICIENT_ATTENTION),
    "torch math": functools.partial(torch_backend, SDPBackend.MATH),
    "torch flex": flex,
}
