"""Kernels in CUDA C++ without a GPU: the host's compiler compiles them, and their threads run one after another.

The folder ``emulator`` emulates their PTX: barriers, copies that happen late or at any moment, wgmma whose sums are NaN
until a thread waits. Blocks run one after another, or at the same time as processes that share memory. This finds wrong
addresses, missing waits and wrong arithmetic, but no races of memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile

import pytest
import torch
from torch import Tensor

import etcuda.kernels
from etcuda.kernels.activations.hopper import reorder
from etcuda.kernels.activations.reference import gate_reference, num_k_segments, reorder_activation_reference
from etcuda.kernels.cuda import Native
from etcuda.kernels.linear.hopper import gemm
from tests.exhaustive import alternate, only, pairs
from tests.kernels.linear.linear_cases import (
    TOLERANCE,
    Case,
    Weight,
    activations,
    compare_reordered,
    error,
    make,
    untiled,
)

EMULATOR = pathlib.Path(__file__).parent / "emulator"
KERNELS = pathlib.Path(etcuda.kernels.__file__).parent
COMPILER = (*shlex.split(os.environ.get("CXX") or shutil.which("g++") or "c++"), "-std=c++17", "-Og", "-w",
            "-fsanitize=undefined", "-fno-sanitize-recover")  # fmt: skip
_FOLDER = tempfile.TemporaryDirectory(prefix="etcuda-emulated-")


@functools.cache
def threads() -> pathlib.Path:
    """What every kernel is linked with."""
    to = pathlib.Path(_FOLDER.name) / "threads.o"
    subprocess.run([*COMPILER, "-c", EMULATOR / "threads.cpp", "-o", to], check=True)
    return to


@functools.cache
def program(main: str, native: Native) -> pathlib.Path:
    """The kernel as an executable."""
    to = pathlib.Path(_FOLDER.name) / f"{main}{len(list(pathlib.Path(_FOLDER.name).iterdir()))}"
    # What the emulated wgmma.cuh needs, also beside a kernel that does not use it.
    defines = {"BLOCK_M": 8, "MMA_DTYPE": 1, "F16_ACCUMULATE": 0, **dict(native.defines)}
    defines |= {"SHARED_BYTES": native.shared, "NAME": "kernel"}
    subprocess.run(
        [*COMPILER, f"-I{EMULATOR}",
         f"-I{(KERNELS / native.source).parent}", f"-I{KERNELS / 'cuda'}",
         *(f"-D{key}={value}" for key, value in defines.items()), f'-DSOURCE="{KERNELS / native.source}"',
         EMULATOR / f"{main}.cpp", threads(), "-o", to],
        check=True,
    )  # fmt: skip
    return to


def emulate(binary: pathlib.Path, numbers: list[int], memory: list[Tensor], written: int) -> int:
    """Runs a kernel on CPU tensors, of which it writes the last ``written``. Returns how often a planning warp left its
    chunks to another CTA."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / str(i) for i in range(len(memory))]
        for path, tensor in zip(paths, memory, strict=True):
            path.write_bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        done = subprocess.run([binary, *map(str, numbers), *paths], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for path, tensor in list(zip(paths, memory, strict=True))[-written:]:
            if tensor.numel():
                tensor.copy_(torch.frombuffer(bytearray(path.read_bytes()), dtype=tensor.dtype).view(tensor.shape))
        return int(done.stdout)


@pytest.mark.parametrize(
    ("dtype", "activation_dtype", "m", "k", "block_m"),
    pairs(
        [(torch.bfloat16, "int8"), (torch.float16, "int8"), (torch.float32, "int8"), (torch.bfloat16, "exact")],
        [(5, 256), (3, 1280), (2, 8704), (0, 256), (1, 33024)],
        [16, 128],
    ),
    ids=str,
)
def test_reorder(dtype: torch.dtype, activation_dtype: str, m: int, k: int, block_m: int) -> None:
    x = activations(m, k, dtype).cpu()
    if m > 4:
        x[1], x[2], x[3, 7] = 0, x[2] * 1e-4, 3e4
    run_reorder(x, [x], [], activation_dtype, block_m)


def run_reorder(
    x: Tensor,
    sources: list[Tensor],
    strides: list[int],
    activation_dtype: str,
    block_m: int,
    gate: str = "",
    up_offset: int = 0,
) -> None:
    """Compares the kernel's result for its sources with the reference for ``x``."""
    m, k = x.shape
    dtype = reorder.multiplies_in(x.dtype, activation_dtype, block_m)
    if dtype == torch.bfloat16:
        ctas, native = reorder.ctas_as_is(k), reorder.native_reorder_as_is(k, gate, up_offset)
    else:
        ctas = num_k_segments(k, activation_dtype, block_m)
        name = str(x.dtype).removeprefix("torch.")
        native = reorder.native_reorder(k, name, activation_dtype, ctas, gate, up_offset)
    expected, divided_by, zeros = reorder_activation_reference(x, 4, activation_dtype, block_m, 1)
    reordered = torch.full_like(expected, float("nan"))
    assert reordered.dtype == dtype
    factor, semaphores = torch.full_like(divided_by, float("nan")), torch.full_like(zeros, -1)
    numbers = [max(m, 1), ctas, m, block_m, 1, *strides]
    emulate(program("reorder", native), numbers, [*sources, reordered, factor, semaphores], 3)
    assert torch.equal(factor, divided_by)
    assert not semaphores.any()
    got, wanted = untiled(reordered), untiled(expected)
    assert got[m:].isnan().all()
    if m and gate:
        # exp and tanh are computed otherwise, which changes a last bit here and there.
        got, wanted = got[:m].float(), wanted[:m].float()
        eps = max(torch.finfo(x.dtype).eps, torch.finfo(dtype).eps)
        assert ((got - wanted).abs() <= eps * wanted.abs() + 1e-6 * wanted.abs().max()).all()
        assert (got != wanted).float().mean() < (0.05 if dtype != torch.float32 else 1)
    elif m:
        compare_reordered(got[:m], wanted[:m], True)


@pytest.mark.parametrize(
    ("gate", "dtype", "activation_dtype", "m", "k", "block_m"),
    [
        ("silu", torch.bfloat16, "int8", 5, 256, 16),
        ("gelu_tanh", torch.bfloat16, "int8", 3, 1280, 128),
        ("silu", torch.float16, "int8", 2, 8704, 64),
        only(False, "silu", torch.bfloat16, "int8", 2, 8704, 128),
        ("gelu_erf", torch.float32, "exact", 3, 1280, 16),
    ],
    ids=str,
)
@pytest.mark.parametrize("joined", [True, False])
def test_reorder_of_a_gate(
    gate: str, dtype: torch.dtype, activation_dtype: str, m: int, k: int, block_m: int, joined: bool
) -> None:
    both = (torch.randn(m, 2 * k, generator=torch.Generator().manual_seed(k)) * 2).to(dtype)
    y = gate_reference(both, None, gate)
    if joined:
        run_reorder(y, [both, both], [2 * k, 2 * k], activation_dtype, block_m, gate, k)
    else:
        # Rows lie apart.
        apart = torch.full((m, k + 8), float("nan"), dtype=dtype)
        apart[:, :k] = both[:, :k]
        run_reorder(y, [apart, both[:, k:].contiguous()], [k + 8, k], activation_dtype, block_m, gate)


@dataclasses.dataclass(frozen=True)
class Launch:
    """One product: a weight, a number of tokens, and a configuration."""

    case: Case
    m: int
    block_m: int
    warpgroups: int
    num_stages: int
    ctas: int
    out: torch.dtype = torch.bfloat16
    activation_dtype: str = "exact"
    reordered_for: int = 0  # Tokens of the tiles for which activations are reordered, if it is not block_m.

    def tolerance(self) -> float:
        if self.activation_dtype == "exact":
            return TOLERANCE[self.out]
        # Partials are rounded to bfloat16. Many sums in float16 add to that error.
        return TOLERANCE[torch.bfloat16] if self.case.k < 8192 else 8e-3


def run(
    launch: Launch, weight: Weight, x: Tensor, semaphores: Tensor, seed: int = 1, at_once: bool = False
) -> tuple[Tensor, int]:
    """The product by the emulated kernel, and how often a planning warp left its chunks to another CTA."""
    bias = weight.bias
    reordered, factor, _ = reorder_activation_reference(
        x, 4, launch.activation_dtype, launch.reordered_for or launch.block_m, 1
    )
    native = gemm.GemmConfig(
        k=launch.case.k, mma_dtype=str(reordered.dtype).removeprefix("torch."),
        activation_dtype=launch.activation_dtype, k_segments=factor.shape[0] if factor.dim() == 2 else 1,
        offset=launch.case.offset, block_m=launch.block_m, warpgroups=launch.warpgroups, num_stages=launch.num_stages,
        out_dtype=str(launch.out).removeprefix("torch."),
        bias_dtype=None if bias is None else str(bias.dtype).removeprefix("torch."),
    ).native()  # fmt: skip
    stored = [part.cpu() for part in weight.stored if part is not None]
    zero = stored[2] if len(stored) > 2 else torch.zeros(0)
    out = torch.full((launch.m, launch.case.n), float("nan"), dtype=launch.out)
    workspace = torch.full((2 * launch.ctas * 64 * launch.warpgroups * launch.block_m,), float("nan"))
    numbers = [launch.ctas, launch.case.n, launch.m, reordered.shape[0], seed, int(at_once)]
    memory = [
        reordered,
        factor,
        *stored[:2],
        zero,
        torch.zeros(0) if bias is None else bias.cpu(),
        out,
        workspace,
        semaphores,
    ]
    chunks_left = emulate(program("gemm", native), numbers, memory, 3)
    return out, chunks_left


# Each is compiled, which takes 2 s.
LAUNCHES = [
    Launch(Case(n=150, k=512), 5, 16, 1, 3, 1),
    Launch(Case(n=150, k=1280, bias=False), 16, 16, 1, 3, 4, torch.float16),
    Launch(Case(n=131, k=768, offset="symmetric"), 17, 32, 1, 4, 3, torch.float32),
    Launch(Case(n=300, k=2304, offset="minimum"), 20, 16, 2, 3, 5),
    Launch(Case(n=200, k=512), 64, 64, 2, 4, 7),
    Launch(Case(n=64, k=256), 9, 16, 1, 3, 6),
    Launch(Case(n=150, k=1280), 16, 16, 1, 3, 4, activation_dtype="int8"),
    Launch(Case(n=131, k=768, offset="symmetric"), 17, 32, 1, 4, 3, activation_dtype="int8"),
    Launch(Case(n=300, k=2304, offset="minimum", bias=False), 40, 64, 2, 3, 5, activation_dtype="int8"),
    Launch(Case(n=150, k=1280), 16, 16, 1, 3, 4, torch.float16, activation_dtype="int8"),
    Launch(Case(n=131, k=768, offset="symmetric"), 17, 32, 1, 4, 3, torch.float32, activation_dtype="int8"),
    # Reordered for other tiles: sums in float16 for small tiles, in float32 for large ones.
    Launch(Case(n=150, k=1280), 16, 16, 1, 3, 4, activation_dtype="int8", reordered_for=128),
    Launch(Case(n=131, k=768, offset="symmetric"), 17, 32, 1, 4, 3, activation_dtype="int8", reordered_for=64),
    # So few partials of a tile that a CTA sums two chunks at a time, also one whose range begins in another tile.
    Launch(Case(n=150, k=1280), 40, 64, 1, 3, 6, activation_dtype="int8"),
    Launch(Case(n=150, k=1280, bias=False), 100, 128, 1, 3, 4, torch.float32, activation_dtype="int8"),
    Launch(Case(n=150, k=1280, offset="minimum"), 33, 64, 1, 3, 4),
    # More steps than a k segment has, in whole tiles and in shared ones.
    Launch(Case(n=40, k=24832, bias=False), 20, 64, 1, 3, 1, activation_dtype="int8"),
    Launch(Case(n=100, k=26624, offset="minimum"), 5, 16, 1, 3, 3, torch.float16, activation_dtype="int8"),
    # More partials of a tile than a warp has lanes.
    Launch(Case(n=40, k=8704, bias=False), 20, 32, 1, 3, 34, activation_dtype="int8"),
    Launch(Case(n=40, k=8704), 20, 32, 1, 3, 36, torch.float16),
]


# Those that differ from others in the dtype of the output, or in what one of two others has each.
OF_OTHERS = [LAUNCHES[index] for index in (0, 4, 7, 9, 15)]


@pytest.mark.parametrize("launch", [only(each not in OF_OTHERS, each) for each in LAUNCHES], ids=str)
def test_product(launch: Launch) -> None:
    weight = make(launch.case, launch.out)
    x = activations(launch.m, launch.case.k, launch.out).cpu()
    semaphores = torch.zeros(reorder.SEMAPHORES, dtype=torch.int32)
    got, chunks_left = run(launch, weight, x, semaphores)
    assert not semaphores.any()
    assert chunks_left == 0 or launch.block_m > 16
    expected = weight.product(x.to(weight.stored[0].device)).cpu()
    assert error(got, expected) < launch.tolerance()
    # Neither the order of copies nor that of CTAs changes a bit.
    assert torch.equal(run(launch, weight, x, semaphores, seed=2)[0], got)


@pytest.mark.parametrize("seed", [only(seed < 4, seed) for seed in range(1, 9)])
def test_partials_of_one_step_each(seed: int) -> None:
    """They are computed while the planning warp still clears their slots."""
    launch = Launch(Case(n=64, k=1024, bias=False), 20, 32, 1, 3, 4, activation_dtype="int8")
    weight = make(launch.case, launch.out)
    x = activations(launch.m, launch.case.k, launch.out).cpu()
    semaphores = torch.zeros(reorder.SEMAPHORES, dtype=torch.int32)
    got, _ = run(launch, weight, x, semaphores, seed=seed)
    assert not semaphores.any()
    assert error(got, weight.product(x.to(weight.stored[0].device)).cpu()) < launch.tolerance()


@pytest.mark.parametrize("launch", [LAUNCHES[1], LAUNCHES[6]], ids=str)
def test_nan_passes_through_partials(launch: Launch) -> None:
    weight = make(launch.case, launch.out)
    x = activations(launch.m, launch.case.k, launch.out).cpu()
    x[2, 7] = float("nan")
    semaphores = torch.zeros(reorder.SEMAPHORES, dtype=torch.int32)
    got, _ = run(launch, weight, x, semaphores)
    assert not semaphores.any()
    assert got[2].isnan().all()
    keep = [row for row in range(launch.m) if row != 2]
    expected = weight.product(x.to(weight.stored[0].device)).cpu()
    assert error(got[keep], expected[keep]) < launch.tolerance()


@pytest.mark.parametrize(
    ("ends", "offset"),
    alternate(
        [(2**-20, 2**9), (2**9, 2**-20), (65504, 65504), (2**-24, 2**-24)], ["zero_point", "symmetric", "minimum"]
    ),
    ids=str,
)
def test_scales_of_any_size_in_float16_sums(offset: str, ends: tuple[float, float]) -> None:
    launch = Launch(Case(n=70, k=2560, offset=offset, bias=False), 9, 64, 1, 3, 2, torch.float32, "int8")
    weight = make(launch.case, launch.out)
    scale = weight.stored[1]
    sizes = torch.logspace(*(math.log2(end) for end in ends), scale.shape[1], base=2, dtype=torch.float64)
    scale.copy_(sizes.clamp(max=65504))
    scale[::3] *= -1
    scale[5] = 0
    if offset == "minimum":
        assert weight.stored[2] is not None
        weight.stored[2].copy_((scale.float() * -7).clamp(-65504, 65504))
    # Activations in proportion, so that all columns count.
    x = (activations(launch.m, launch.case.k, launch.out).cpu() / sizes.repeat_interleave(32)).float()
    values = weight.format.dequantize(*weight.stored).double().cpu()  # type: ignore[arg-type]
    expected = x.double() @ values.T
    got, _ = run(launch, weight, x, torch.zeros(reorder.SEMAPHORES, dtype=torch.int32))
    assert not got[:, 5].any()
    keep = [row for row in range(launch.case.n) if row != 5]
    if ends[0] == ends[1]:
        assert error(got[:, keep], expected[:, keep]) < launch.tolerance()
    else:
        # Over so many sizes, weights and activations are exact only relative to the largest of their row.
        bound = 2**-12 * (x.abs().amax(1, keepdim=True) * values.abs().amax(1)) * launch.case.k**0.5
        assert ((got - expected).abs() <= bound)[:, keep].all()


@pytest.mark.parametrize("launch", [LAUNCHES[-1], Launch(Case(n=150, k=1280), 20, 32, 1, 3, 4)], ids=str)
def test_ctas_that_run_at_the_same_time(launch: Launch) -> None:
    weight = make(launch.case, launch.out)
    x = activations(launch.m, launch.case.k, launch.out).cpu()
    semaphores = torch.zeros(reorder.SEMAPHORES, dtype=torch.int32)
    alone, chunks_left = run(launch, weight, x, semaphores, seed=2)
    assert chunks_left > 0
    together, chunks_left = run(launch, weight, x, semaphores, seed=3, at_once=True)
    assert chunks_left == 0
    assert torch.equal(together, alone)
    assert not semaphores.any()
