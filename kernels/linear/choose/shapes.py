"""The linear layers that are tuned and measured: those of published models, the most important first."""

from __future__ import annotations

from etcuda.kernels.formats.registry import find
from etcuda.kernels.linear.choose.table import KernelName
from etcuda.kernels.linear.problem import LinearProblem

# N x K: Llama 2 7B, a 31B decoder with hidden size 5376 and its vocabulary, two small ones.
SHAPES = (
    (4096, 4096), (11008, 4096), (4096, 11008), (43008, 5376), (5376, 21504), (262144, 5376), (2048, 2048),
    (1024, 2048),
)  # fmt: skip
# Llama 3 8B: q|k|v, gate|up, down.
MORE_SHAPES = ((6144, 4096), (28672, 4096), (4096, 14336))
LARGE = ((43008, 5376), (5376, 21504))
_FEW = (2, 4, 8)
_MANY = (16, 32, 64, 512, 2048, 128)


def problems(format_name: str) -> list[tuple[KernelName, LinearProblem]]:
    """What the tuner measures for weights of a format: all shapes, or few, as its record says."""
    record = find(format_name)

    def of(m: int, shape: tuple[int, int]) -> LinearProblem:
        return LinearProblem(m, *shape, record.name, offset=record.tuned_offset)

    if record.tuned_shapes == "few":
        shapes = ((43008, 5376), (4096, 4096), (5376, 21504))
        found: list[tuple[KernelName, LinearProblem]] = [("matvec", of(m, s)) for s in shapes for m in (1, 4)]
        return found + [("matmul", of(m, shapes[0])) for m in (4, 16, 512)]
    found = [("matvec", of(1, shape)) for shape in SHAPES]
    found += [("matvec", of(m, LARGE[0])) for m in _FEW]
    found += [("matmul", of(m, shape)) for shape in LARGE for m in _MANY[:5]]
    # Where one gives way to the other.
    found += [("matmul", of(m, LARGE[0])) for m in (8, 4, 1)]
    found += [("matvec", of(m, LARGE[1])) for m in _FEW] + [("matmul", of(m, LARGE[1])) for m in (8, 4)]
    small = (4096, 4096)
    found += [("matvec", of(m, small)) for m in _FEW] + [
        ("matmul", of(m, small)) for m in (8, 4, 16, 32, 64, 128, 512, 2048)
    ]
    found += [("matvec", of(1, shape)) for shape in MORE_SHAPES]
    return found + [("matmul", of(128, shape)) for shape in LARGE]
