"""The product in gemm.cu on the local GPU, against double precision."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etcuda import CompileOptions, Int4CoalescedConfig, quantize_weights
from etcuda.backend.inspect import inspect_program
from etcuda.errors import KernelArgumentError
from etcuda.kernels.activations.hopper.reorder import ARCH, multiplies_in
from etcuda.kernels.activations.reference import gate_reference, reorder_activation_reference
from etcuda.kernels.activations.reorder_op import gate_reorder, reorder_activation
from etcuda.kernels.linear.choose.configs import MatmulConfig
from etcuda.kernels.linear.choose.select import Choice
from etcuda.kernels.linear.hopper.gemm import shared_bytes
from etcuda.passes.linear import choose as choose_linear
from examples.cpp.session import run_calls
from examples.export import export_program
from examples.models import Call
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
from tests.kernels.linear.linear_cases import poison as poison
from tests.passes.linear.quantized_programs import MLP, quantized
from tests.passes.linear.quantized_programs import make as make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason=f"no GPU of {ARCH} here"
    ),
]
# Warpgroups and stages.
SHAPES = [(4, 3), (3, 3), (3, 4), (2, 4), (1, 3)]


def product(
    weight: Weight, x: Tensor, shape: tuple[int, int] = SHAPES[0], block_m: int = 16, ctas: int = 7,
    activation_dtype: str = "exact", pdl: int = 0,
) -> Tensor:  # fmt: skip
    warpgroups, stages = shape
    config = (activation_dtype, 64 * warpgroups, block_m, 8, 4, stages, ctas, 0, warpgroups, pdl)
    result: Tensor = torch.ops.etcuda.int4_matmul(x, *weight.stored, weight.bias, weight.format.group_size, *config)
    return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("activation_dtype", ["int8", "exact"])
@pytest.mark.parametrize(("m", "k"), [(1, 256), (5, 768), (33, 5376), (64, 21504), (0, 512)])
@pytest.mark.parametrize("block_m", [16, 128])
def test_reorder(dtype: torch.dtype, activation_dtype: str, m: int, k: int, block_m: int) -> None:
    x = activations(m, k, dtype)
    if m > 4:
        x[1], x[2], x[3, 7], x[4, 40] = 0, x[2] * 1e-4, 3e4, float("nan")
    reordered, factor, semaphores = reorder_activation(x, 4, activation_dtype, block_m, 1, 0)
    expected, divided_by, _ = reorder_activation_reference(x.cpu(), 4, activation_dtype, block_m, 1)
    assert (reordered.shape, reordered.dtype) == (expected.shape, multiplies_in(dtype, activation_dtype, block_m))
    assert torch.equal(factor.cpu(), divided_by)
    assert not semaphores.any()
    got, wanted = untiled(reordered.cpu())[:m], untiled(expected)[:m]
    assert torch.equal(got.isnan().any(1), wanted.isnan().any(1))
    if m:  # Where a block has a NaN, the kernel still reorders the others of the block, the reference none.
        unknown = got.isnan() | wanted.isnan()
        compare_reordered(got.masked_fill(unknown, 0), wanted.masked_fill(unknown, 0), True)


# Those that fit into the shared memory of a block of sm_90.
FORMATS = [
    (offset, block_m, shape)
    for offset in ("zero_point", "symmetric", "minimum")
    for block_m in (16, 32, 64, 128)
    for shape in SHAPES
    if shared_bytes(block_m, *shape, offset) <= 227 << 10
]


@pytest.mark.parametrize("gate_activation", ["silu", "gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize(
    ("dtype", "activation_dtype", "m", "k", "block_m"),
    [
        (torch.bfloat16, "int8", 64, 21504, 64),
        (torch.bfloat16, "int8", 13, 5376, 16),
        (torch.bfloat16, "int8", 130, 14336, 128),
        (torch.float16, "int8", 3, 1280, 32),
        (torch.float32, "exact", 7, 768, 16),
        (torch.bfloat16, "exact", 0, 256, 16),
    ],
    ids=str,
)
@pytest.mark.parametrize("joined", [True, False])
def test_reorder_of_a_gate(
    gate_activation: str, dtype: torch.dtype, activation_dtype: str, m: int, k: int, block_m: int, joined: bool
) -> None:
    both = (torch.randn(m, 2 * k, generator=torch.Generator().manual_seed(k)) * 2).to(dtype)
    if m > 2:
        both[1, 5], both[2, k + 3] = float("nan"), 3e4
    on_gpu = both.cuda()
    # Halves of joined rows have a stride of twice their length.
    pair = (on_gpu, None) if joined else (on_gpu[:, :k], on_gpu[:, k:])
    reordered, factor, semaphores = gate_reorder(*pair, gate_activation, activation_dtype, block_m, 0)
    y = gate_reference(both, None, gate_activation)
    expected, divided_by, zeros = reorder_activation_reference(y, 4, activation_dtype, block_m, 1)
    assert torch.equal(semaphores.cpu(), zeros)
    assert (reordered.shape, reordered.dtype, factor.shape) == (expected.shape, expected.dtype, divided_by.shape)
    got, wanted = untiled(reordered.cpu())[:m].float(), untiled(expected)[:m].float()
    divided = factor.cpu()
    if m > 2:  # The power of two of a row with NaN is unspecified.
        assert got[1].isnan().any()
        keep = [row for row in range(m) if row != 1]
        got, wanted, divided, divided_by = got[keep], wanted[keep], divided[..., keep], divided_by[..., keep]
    assert torch.equal(divided, divided_by)
    # exp and tanh are approximations, which changes a last bit here and there.
    eps = max(torch.finfo(dtype).eps, torch.finfo(reordered.dtype).eps)
    most = wanted.abs().amax() if m else 0
    assert ((got - wanted).abs() <= eps * wanted.abs() + 1e-6 * most).all()


@pytest.mark.parametrize("m", [16, 64])
def test_a_product_behind_a_gate_in_a_graph(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel reads what the one in front of it writes, and in a graph launches follow each other closely."""
    # Without the poison, whose kernels would stand between these, and all kernels behind would wait for them.
    monkeypatch.undo()
    case = Case(n=5376, k=21504, bias=False)
    weight = make(case, torch.bfloat16)
    both = torch.randn(m, 2 * case.k, dtype=torch.bfloat16, device="cuda")
    config = ("int8", 256, m, 8, 16, 3, 132, 0, 4)

    def product(pdl: int) -> Tensor:
        reordered = gate_reorder(both, None, "silu", "int8", m, pdl)
        result: Tensor = torch.ops.etcuda.int4_matmul_reordered(
            *reordered, *weight.stored, None, 32, torch.bfloat16, *config, pdl
        )
        return result

    wanted = product(0)
    assert error(wanted, weight.product(gate_reference(both, None, "silu"))) < TOLERANCE[torch.bfloat16]
    product(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = [product(1) for _ in range(8)]
    for _ in range(50):
        for result in got:
            result.fill_(77)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(result, wanted) for result in got)


@pytest.mark.parametrize(("offset", "block_m", "shape"), FORMATS, ids=str)
@pytest.mark.parametrize("activation_dtype", ["int8", "exact"])
def test_formats(offset: str, block_m: int, shape: tuple[int, int], activation_dtype: str) -> None:
    case = Case(n=520, k=768, offset=offset)
    weight = make(case, torch.bfloat16)
    x = activations(block_m - 3, case.k, torch.bfloat16)
    got = product(weight, x, shape, block_m, activation_dtype=activation_dtype)
    assert error(got, weight.product(x)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(("n", "k"), [(520, 11264), (5376, 21504), (200, 65280)])
@pytest.mark.parametrize("block_m", [16, 64, 128])
def test_sums_of_many_products(n: int, k: int, block_m: int) -> None:
    weight = make(Case(n=n, k=k, bias=False), torch.bfloat16)
    x = activations(block_m, k, torch.bfloat16)
    for ctas in (1, 132):
        got = product(weight, x, (3, 3) if block_m == 128 else (4, 3), block_m, ctas, "int8")
        assert error(got, weight.product(x)) < 6e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [5, 9, 131, 256, 1000])
def test_dtypes_and_rows_of_the_weight(dtype: torch.dtype, bias: bool, n: int) -> None:
    case = Case(n=n, k=512, bias=bias)
    weight = make(case, dtype)
    x = activations(17, case.k, dtype)
    for activation_dtype in ("exact", "int8"):
        for ctas in (1, 3):
            got = product(weight, x, block_m=32, ctas=ctas, activation_dtype=activation_dtype)
            assert got.dtype == dtype
            # With five rows the error of a few weights counts, whose scales and zero points are rounded to bfloat16.
            most = 3 if n == 5 and dtype == torch.bfloat16 and activation_dtype == "int8" else 2
            # With int8, partials are rounded to bfloat16.
            bound = TOLERANCE[torch.bfloat16 if activation_dtype == "int8" else dtype]
            assert error(got, weight.product(x)) < most * bound


@pytest.mark.parametrize("m", [0, 1, 2, 16, 17, 33, 64, 65, 150])
@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize(("k", "ctas"), [(256, 1), (256, 132), (1280, 5), (1280, 132), (5376, 40)])
@pytest.mark.parametrize(("dtype", "activation_dtype"), [(torch.float16, "exact"), (torch.bfloat16, "int8")], ids=str)
def test_tiles_that_ctas_share(
    m: int, block_m: int, k: int, ctas: int, dtype: torch.dtype, activation_dtype: str
) -> None:
    case = Case(n=777, k=k, bias=ctas == 5)
    weight = make(case, dtype)
    x = activations(m, k, dtype)
    got = product(weight, x, block_m=block_m, ctas=ctas, activation_dtype=activation_dtype)
    assert got.shape == (m, case.n)
    if m:
        assert error(got, weight.product(x)) < TOLERANCE[dtype]


def test_rows_not_dense_and_batches() -> None:
    weight = make(Case(n=300, k=512))
    x = activations(24, 1024, torch.float16)[:, ::2].reshape(2, 3, 4, 512)
    got = product(weight, x)
    assert got.shape == (2, 3, 4, 300)
    assert error(got.reshape(24, 300), weight.product(x.reshape(24, 512))) < TOLERANCE[torch.float16]


def test_weights_that_are_not_aligned() -> None:
    weight = make(Case(n=300, k=512))
    x = activations(17, 512, torch.float16)
    expected = product(weight, x)

    def misaligned(stored: Tensor | None) -> Tensor | None:
        if stored is None:
            return None
        flat = torch.empty(stored.numel() + 1, dtype=stored.dtype, device=stored.device)[1:]
        return flat.copy_(stored.flatten()).view(stored.shape)

    stored = tuple(misaligned(each) for each in weight.stored)
    other = Weight(weight.format, stored, weight.bias, weight.values)  # type: ignore[arg-type]
    assert torch.equal(product(other, x), expected)
    assert torch.equal(product(other, x, pdl=1), expected)


@pytest.mark.parametrize(("dtype", "activation_dtype"), [(torch.float16, "exact"), (torch.bfloat16, "int8")], ids=str)
def test_the_same_bits_with_pdl_or_reordered_before(dtype: torch.dtype, activation_dtype: str) -> None:
    weight = make(Case(n=5000, k=2560), dtype)
    x = activations(40, 2560, dtype)
    first = product(weight, x, block_m=64, ctas=132, activation_dtype=activation_dtype)
    reordered, factor, semaphores = reorder_activation(x, 4, activation_dtype, 128, 1, 0)
    config = (x.dtype, activation_dtype, 256, 64, 8, 4, 3, 132, 0, 4, 0)
    again = torch.ops.etcuda.int4_matmul_reordered(
        reordered, factor, semaphores, *weight.stored, weight.bias, 32, *config
    )
    assert torch.equal(first, again)
    assert not semaphores.any()
    graph = torch.cuda.CUDAGraph()
    product(weight, x, block_m=64, ctas=132, activation_dtype=activation_dtype, pdl=1)
    with torch.cuda.graph(graph):
        many = [
            product(weight, x * 2, block_m=64, ctas=132, activation_dtype=activation_dtype, pdl=1) for _ in range(20)
        ]
    graph.replay()
    torch.cuda.synchronize()
    expected = product(weight, x * 2, block_m=64, ctas=132, activation_dtype=activation_dtype)
    assert all(torch.equal(each, expected) for each in many)


def test_large_scales_and_offsets() -> None:
    weight = make(Case(n=64, k=256))
    weight.stored[1].fill_(10.0)
    x = torch.zeros(9, 256, dtype=torch.float32, device="cuda")
    x[:, 5] = torch.arange(9, device="cuda") * 1e-3
    values = weight.format.dequantize(*weight.stored)  # type: ignore[arg-type]
    expected = x.double() @ values.double().T + weight.bias.double()  # type: ignore[union-attr]
    got = product(weight, x, ctas=3)
    assert torch.isfinite(got).all()
    assert error(got, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("block_m", [16, 64])
def test_scales_of_any_size(block_m: int) -> None:
    weight = make(Case(n=64, k=1024, bias=False), torch.bfloat16)
    scale, zero = weight.stored[1], weight.stored[2]
    assert zero is not None
    sizes = [65504.0, -65504.0, 2.0**-24, -(2.0**-20), 0.0, 1.0, 2.0**-14, 3e-5]
    scale.copy_(torch.tensor(sizes, dtype=torch.float16, device="cuda").repeat(8)[:, None].expand_as(scale))
    zero[::3] = 255
    x = activations(9, 1024, torch.bfloat16)
    expected = x.double() @ weight.format.dequantize(*weight.stored).double().T  # type: ignore[arg-type]
    got = product(weight, x, block_m=block_m, ctas=3, activation_dtype="int8")
    for row, size in enumerate(sizes):
        if size == 0:
            assert not got[:, row::8].any()
        else:
            # With zero points of 255 all weights of a block have the same error: from the rounding of the scale, of
            # the offset, of the weight, of the partial and of the result, 2^-9 each.
            assert error(got[:, row::8], expected[:, row::8]) < 5 * 2**-9


def test_other_weights_are_refused() -> None:
    weight = make(Case(n=64, k=256, group_size=64))
    x = activations(9, 256, torch.float16)
    with pytest.raises(KernelArgumentError, match="int4_matmul: warpgroups: expected 0 but for int4 in groups of 32"):
        product(weight, x)


def compare_program(
    model: nn.Module, sizes: tuple[int, ...], shapes: Any, kernel: str, path: pathlib.Path, run_session: pathlib.Path
) -> None:
    """Exports a model for rows of 512, with the second of ``sizes`` as the example, and runs it for all of them."""
    calls = [Call("forward", (torch.randn(size, 512).to(torch.bfloat16),)) for size in sizes]
    program = torch.export.export(model, calls[1].inputs, dynamic_shapes=shapes)
    export_program({"forward": program}, ARCH, path, CompileOptions(progress=False))
    (delegate,) = inspect_program(path).methods[0].delegates
    assert kernel in delegate.images[0].kernels
    expected = [model(*call.inputs) for call in calls]
    for got, wanted in zip(run_calls(run_session, path, calls, expected), expected, strict=True):
        assert error(got, wanted.double()) < 2e-2


def test_a_program_whose_gate_is_computed_in_branches(tmp_path: pathlib.Path, run_session: pathlib.Path) -> None:
    model = quantized(make_model(MLP, dim=512, hidden=1280))
    shapes = ({0: torch.export.Dim("m", min=1, max=300)},)
    path = tmp_path / "model.pte"
    compare_program(model, (1, 64, 2, 3, 65, 300, 16), shapes, "hopper_gate_reorder_pdl", path, run_session)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("activation_dtype", ["int8", "exact"])
def test_programs(
    activation_dtype: str,
    dynamic: bool,
    tmp_path: pathlib.Path,
    run_session: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = MatmulConfig(256, 16, 8, 16, 3, 1, 0, 4)
    monkeypatch.setattr(choose_linear, "choose_matmul", lambda *a, **k: Choice("matmul", config, "this test"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 1280), nn.Tanh(), nn.Linear(1280, 777))
    model = model.to(torch.bfloat16).eval().requires_grad_(False)
    quantize_weights(model, Int4CoalescedConfig(activation_dtype=activation_dtype))
    sizes = (9, 20, 300, 16) if dynamic else (20, 20)
    shapes = ({0: torch.export.Dim("m", min=9, max=300)},) if dynamic else None
    compare_program(model, sizes, shapes, "hopper_gemm_pdl", tmp_path / "model.pte", run_session)
