"""Every reduction of every dtype, of a whole tensor and along its dimensions, on numbers of the dtype's whole range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.passes.library.order_cases import DTYPES, Case

Reduce = Callable[[Tensor, Any], Any]

ANY_DTYPE: dict[str, Reduce] = {
    "all": lambda x, dim: x.all() if dim is None else x.all(dim),
    "amax": lambda x, dim: x.amax(() if dim is None else dim),
    "amin": lambda x, dim: x.amin(() if dim is None else dim),
    "aminmax": lambda x, dim: tuple(x.aminmax(dim=dim)),
    "any": lambda x, dim: x.any() if dim is None else x.any(dim),
    "argmax": lambda x, dim: x.argmax(dim),
    "argmin": lambda x, dim: x.argmin(dim),
    "count_nonzero": lambda x, dim: x.count_nonzero(dim),
    "max": lambda x, dim: x.max() if dim is None else tuple(x.max(dim)),
    "min": lambda x, dim: x.min() if dim is None else tuple(x.min(dim)),
}
INTEGERS: dict[str, Reduce] = {
    "amax of quotients": lambda x, dim: (x if x.dtype == torch.bool else x // 3).amax(() if dim is None else dim),
    "mean": lambda x, dim: x.mean(dim, dtype=torch.float64),
    "prod": lambda x, dim: x.prod() if dim is None else x.prod(dim),
    "prod of its dtype": lambda x, dim: x.prod(dtype=x.dtype) if dim is None else x.prod(dim, dtype=x.dtype),
    "sum": lambda x, dim: x.sum(dim),
    "sum of its dtype": lambda x, dim: x.sum(dim, dtype=x.dtype),
}
FLOATS: dict[str, Reduce] = {
    "logsumexp": lambda x, dim: x.logsumexp((0, 1) if dim is None else dim),
    "mean": lambda x, dim: x.mean(dim),
    "norm": lambda x, dim: torch.linalg.vector_norm(x, 2, dim),
    "norm inf": lambda x, dim: torch.linalg.vector_norm(x, torch.inf, dim),
    "prod": lambda x, dim: (x / 4).prod() if dim is None else (x / 4).prod(dim),
    "sum": lambda x, dim: x.sum(dim),
    "var": lambda x, dim: x.var(dim),
}


BYTES = (torch.bool, torch.uint8, torch.int8)


def whole_range(dtype: torch.dtype, sign: int) -> Tensor:
    """(6, 48): numbers of both signs, or of one."""
    generator = torch.Generator().manual_seed(sign)
    if dtype == torch.bool:
        return torch.randint(0, 2, (6, 48), generator=generator) == 1 if sign == 0 else torch.full((6, 48), sign > 0)
    if dtype.is_floating_point:
        return torch.randn((6, 48), generator=generator).to(dtype)
    limits = torch.iinfo(dtype)
    low = 1 if sign > 0 else max(limits.min, -(2**62))
    high = 0 if sign < 0 else min(limits.max, 2**62)
    return torch.randint(low, high, (6, 48), generator=generator).to(dtype)


def reduction_cases(dtypes: tuple[torch.dtype, ...] = DTYPES) -> Iterator[Case]:
    """Each reduction; of bytes, which vectors of one instruction set hold 32 of, numbers of either sign too."""
    for dtype in dtypes:
        narrow = dtype in BYTES
        table = ANY_DTYPE | (FLOATS if dtype.is_floating_point else INTEGERS)
        # Of one sign: a reduction that begins with the wrong number shows there.
        for sign in (0, 1) if dtype == torch.uint8 else (-1, 1) if narrow else (-1,):
            for name, reduce in table.items():
                if dtype == torch.bool and name in ("argmax", "argmin"):
                    continue
                for dim in (None, 0, 1) if narrow else (1,):
                    yield Case(
                        f"{name} along {dim}, sign {sign},",
                        lambda x, r=reduce, d=dim: r(x, d),
                        (whole_range(dtype, sign),),
                    )
