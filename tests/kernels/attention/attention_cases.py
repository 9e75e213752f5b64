"""Attention problems for the tests, and the comparison with the reference in double precision.

The kernels run on the GPU if there is one; else in Triton's interpreter, which must be on before triton is imported.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from etcuda.kernels.attention.op import attention_split, attention_tiled
from etcuda.kernels.attention.problem import FULL, MAX_QUERY, POSITIONS
from etcuda.kernels.attention.reference import attention_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PDL = int(torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0))
# The interpreter multiplies the bit patterns of bfloat16 matrices.
DTYPES = (torch.float16, torch.bfloat16) if DEVICE == "cuda" else (torch.float16,)
# Largest error relative to the reference's norm: three roundings of the dtype.
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem. ``layout`` is the memory order of q, k and v; ``mask`` the shape of a mask and its kind."""

    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    l_q: int = 3
    l_kv: int = 40
    head_dim: int = 16
    dtype: torch.dtype = torch.float16
    causal: int = FULL
    window: int = 0
    softcap: float = 0.0
    scale: float | None = None
    layout: str = "bhld"
    mask: tuple[str, tuple[int, ...]] | None = None
    kv_len: tuple[int, ...] | None = None
    positions: tuple[tuple[int, ...], ...] | None = None
    seed: int = 0
    sinks: bool = False
    ring: bool = False


def make(case: Case) -> tuple[list[Tensor], Tensor | None, Tensor | None, Tensor | None]:
    """q, k and v; mask, kv_len and positions."""
    random = torch.Generator().manual_seed(case.seed)

    def heads(count: int, length: int) -> Tensor:
        shape = (case.batch, count, length, case.head_dim)
        if case.layout == "blhd":
            made = torch.randn(shape[0], shape[2], shape[1], shape[3], generator=random).transpose(1, 2)
        elif case.layout == "padded":
            # Rows wider than the head, and keys that begin in the middle of a longer cache.
            made = torch.randn(*shape[:2], shape[2] + 5, shape[3] + 3, generator=random)[:, :, 2 : 2 + length, :-3]
        elif case.layout == "dhead":
            made = torch.randn(shape[0], shape[1], shape[3], shape[2], generator=random).transpose(2, 3)
        else:
            made = torch.randn(shape, generator=random)
        strides, offset = made.stride(), made.storage_offset()
        storage = made.new_empty(0).set_(made.untyped_storage()).to(case.dtype).to(DEVICE)
        return storage.as_strided(made.shape, strides, offset)

    tensors = [heads(case.heads, case.l_q), heads(case.kv_heads, case.l_kv), heads(case.kv_heads, case.l_kv)]
    mask = None
    if case.mask is not None:
        kind, shape = case.mask
        numbers = torch.rand(shape, generator=random)
        if kind == "bool":
            mask = numbers > 0.5
        elif kind == "float":
            mask = (numbers * 4).to(case.dtype)
        else:
            dtype = case.dtype if kind == "inf" else torch.float32
            low = -torch.inf if kind == "inf" else torch.finfo(dtype).min
            mask = torch.where(numbers > 0.5, 0.0, low).to(dtype)
        mask = mask.to(DEVICE)
    kv_len = None if case.kv_len is None else torch.tensor(case.kv_len, dtype=torch.int32, device=DEVICE)
    positions = None if case.positions is None else torch.tensor(case.positions, device=DEVICE)
    return tensors, mask, kv_len, positions


def sinks_of(case: Case) -> Tensor | None:
    """A logit for each head, some greater than all logits."""
    if not case.sinks:
        return None
    return torch.linspace(-3.0, 6.0, case.heads, dtype=case.dtype, device=DEVICE)


def check(case: Case, block_n: int = 32, num_splits: int = 3, block_m: int = 16) -> None:
    """Runs every kernel that serves the case and compares it with the reference."""
    assert (case.positions is not None) == (case.causal == POSITIONS)
    (q, k, v), mask, kv_len, positions = make(case)
    sinks = sinks_of(case)
    expected = attention_reference(
        q.double(),
        k.double(),
        v.double(),
        mask if mask is None or mask.dtype == torch.bool else mask.double(),
        kv_len,
        positions,
        case.scale,
        case.causal,
        case.window,
        case.softcap,
        None if sinks is None else sinks.double(),
        case.ring,
    )
    extras = {"sinks": sinks, "ring": case.ring}
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    arguments = (q, k, v, mask, kv_len, positions, scale, case.causal, case.window, case.softcap)
    results = {
        f"tiled, one loop {one_loop}, section {section}": attention_tiled(
            *arguments, block_m, block_n, 4, 2, one_loop, section, **extras
        )
        for one_loop, section in ((1, 3), (0, case.batch * case.heads))
    }
    if case.l_q <= MAX_QUERY:
        for splits in {1, num_splits}:
            chunk = 8 if case.head_dim > 8 else 16
            results[f"split {splits}"] = attention_split(
                *arguments, block_m, block_n, 4, 2, splits, 2, chunk, PDL, **extras
            )
    for name, got in results.items():
        assert got.shape == expected.shape
        assert got.dtype == case.dtype
        assert not got.isnan().any(), f"{name}: NaN, {case}"
        masked = expected.abs().amax(-1) == 0
        assert not got[masked].any(), f"{name}: rows that see no key are not zero, {case}"
        norm = max(float(expected.norm()), 1e-6)
        error = float((got.double() - expected).norm()) / norm
        assert error < TOLERANCE[case.dtype], f"{name}: relative error {error:.1e}, {case}"
