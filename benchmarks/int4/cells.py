"""What the benchmark measures: registry data only, the most important first."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from etcuda.kernels.linear.choose.shapes import LARGE, MORE_SHAPES, SHAPES
from etcuda.kernels.linear.problem import LinearProblem

Kind = Literal["decode", "few", "prompt", "gated", "prefill", "exact", "int8"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One problem. ``kind`` is the section of the page."""

    kind: Kind
    problem: LinearProblem

    @property
    def name(self) -> str:
        """The row's name."""
        problem = self.problem
        return f"M {problem.m}, {problem.n}x{problem.k}"


def _cells() -> list[Cell]:
    cells = [Cell("decode", LinearProblem(1, *shape)) for shape in SHAPES]
    cells += [Cell("few", LinearProblem(m, *LARGE[0])) for m in (2, 4, 8)]
    cells += [Cell("prefill", LinearProblem(m, *shape)) for shape in LARGE for m in (512, 2048)]
    cells += [Cell("prompt", LinearProblem(m, *shape)) for shape in LARGE for m in (16, 32, 64)]
    cells += [Cell("gated", LinearProblem(m, *LARGE[1])) for m in (16, 32, 64, 512)]
    int8 = {"format_name": "int8", "offset": "symmetric"}
    cells += [Cell("int8", LinearProblem(1, *shape, **int8)) for shape in (LARGE[0], (4096, 4096))]  # type: ignore[arg-type]
    cells += [Cell("exact", LinearProblem(m, *LARGE[0], activation_dtype="exact")) for m in (1, 16, 512)]
    cells += [Cell("int8", LinearProblem(512, *LARGE[0], **int8))]  # type: ignore[arg-type]
    return cells + [Cell("decode", LinearProblem(1, *shape)) for shape in MORE_SHAPES]


CELLS = tuple(_cells())

# Microseconds of engines that are not measured here, recorded on 2026-11-21 on the same kind of GPU, an H200, with the
# same timing in a run of their own: ExecuTorch's CUDA kernels with the quantisation of activations, and llama.cpp's
# q4_0 and q4_K products. By N and K, one token.
RECORDED_US: dict[tuple[int, int], tuple[float, float, float]] = {
    (4096, 4096): (6.68, 6.76, 7.67),
    (11008, 4096): (12.32, 13.46, 16.08),
    (4096, 11008): (13.67, 13.45, 15.17),
    (43008, 5376): (44.32, 59.13, 72.00),
    (5376, 21504): (26.66, 25.64, 28.70),
    (262144, 5376): (253.4, 343.3, 422.4),
    (2048, 2048): (5.04, 4.23, 4.35),
    (1024, 2048): (4.78, 3.18, 3.26),
}
