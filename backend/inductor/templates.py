"""Convolutions through Inductor's Triton templates, with a tile chosen by a model instead of a benchmark."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._inductor import select_algorithm
from torch._inductor.kernel import conv

from etcuda.target import CudaTarget

_TEMPLATE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@contextlib.contextmanager
def convolutions_without_benchmark(target: CudaTarget) -> Iterator[None]:
    """Routes convolutions to Triton templates and picks one tile for each; products stay library calls."""

    def pick(choices: list[Any]) -> list[Any]:
        rendered = [choice for choice in choices if isinstance(choice, select_algorithm.TritonTemplateCaller)]
        if not rendered:
            # Only library calls: the first is the plain one.
            return choices[:1]
        fitting = [choice for choice in rendered if _tile(choice).shared_bytes <= target.shared_memory_per_block]
        return [min(fitting or rendered, key=lambda choice: _tile(choice).cost(_problem(choice), target))]

    select_algorithm.add_preprocessing_fn(pick)
    try:
        with (
            mock.patch.object(conv, "use_triton_template", lambda layout, **_kwargs: layout.dtype in _TEMPLATE_DTYPES),
            torch._inductor.config.patch(max_autotune_conv_backends="TRITON"),
        ):
            yield
    finally:
        select_algorithm.clear_preprocessing_fns()


class _Tile:
    """Block shape of one template instance: rows (pixels) x columns (channels), depth of one step, stages, warps."""

    def __init__(self, block_m: int, block_n: int, block_k: int, stages: int, warps: int, itemsize: int) -> None:
        self.block_m, self.block_n, self.block_k, self.stages, self.warps = block_m, block_n, block_k, stages, warps
        self.shared_bytes = (block_m + block_n) * block_k * itemsize * stages

    def cost(self, problem: tuple[int, int], target: CudaTarget) -> tuple[float, int, int]:
        """Relative time: waves over the SMs times the work of a tile, small tiles paying for less reuse of operands."""
        rows, columns = problem
        tiles = math.ceil(rows / self.block_m) * math.ceil(columns / self.block_n)
        waves = math.ceil(tiles / target.num_sms)
        # A step costs its products and, whatever the size, its latency; deeper steps and more stages hide more of it.
        step = self.block_m * self.block_n / 4096 + 2.0 / min(self.stages, 4)
        return (waves * step * (16 / self.block_k + 1), -self.stages, self.warps)


def _tile(choice: Any) -> _Tile:
    info = choice.info_dict()
    sizes = [int(size) for size in re.findall(r"\d+", str(info.get("tile_shape", "")))]
    if len(sizes) < 3:
        raise RuntimeError(f"a convolution template states no tile shape; expected three sizes, got {info!r}.")
    block_m, block_k, block_n = sizes[:3]
    itemsize = choice.layout.dtype.itemsize
    return _Tile(block_m, block_n, block_k, int(info["num_stages"]), int(info["num_warps"]), itemsize)


def _problem(choice: Any) -> tuple[int, int]:
    hint = torch._inductor.virtualized.V.graph.sizevars.optimization_hint
    sizes = [int(hint(size, fallback=1)) for size in choice.layout.size]
    return sizes[0] * math.prod(sizes[2:]), sizes[1]
