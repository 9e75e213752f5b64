"""Maximum pooling whose result may have one row or column."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import inductor_prims  # noqa: F401  registers the operators
from torch._prims import TensorMeta


@contextlib.contextmanager
def pooled_sizes_are_not_asked() -> Iterator[None]:
    """Lets Inductor's two operators of maximum pooling tell the shapes of their results from those of what is pooled.

    By themselves they compute results to tell the shapes, and ask on the way whether a size is 1, which fails for sizes
    that may be.
    """
    pool = torch.ops.prims._low_memory_max_pool_with_offsets.default
    to_indices = torch.ops.prims._low_memory_max_pool_offsets_to_indices.default
    with mock.patch.object(pool, "prim_meta_impl", _pooled), mock.patch.object(to_indices, "prim_meta_impl", _indices):
        yield


def _pooled(x: Tensor, kernel_size: list[Any], *how: Any) -> tuple[Any, Any]:
    """The maxima, and their offsets in the window, int8."""
    pool = torch.ops.aten.max_pool2d_with_indices if len(kernel_size) == 2 else torch.ops.aten.max_pool3d_with_indices
    maxima, _ = pool(x, kernel_size, *how)
    return TensorMeta(maxima), TensorMeta(maxima, dtype=torch.int8)


def _indices(offsets: Tensor, *_how: Any) -> Any:
    """Indices, int64, of offsets."""
    return TensorMeta(offsets, dtype=torch.int64)
