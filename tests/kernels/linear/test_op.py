"""The operators on quantised weights without a GPU: results on the CPU, refusals, fake tensors, export."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from etcuda.errors import KernelArgumentError, WeightFormatError
from etcuda.kernels.activations.quantize_op import quantize_activation
from etcuda.kernels.activations.reorder_op import reorder_activation
from etcuda.kernels.common import registry
from etcuda.kernels.common.memory import aligned
from etcuda.kernels.formats.registry import find
from etcuda.kernels.linear.choose.configs import MatmulLaunch, MatvecLaunch
from tests.kernels.linear.linear_cases import Case, error, make, rounded

ops = torch.ops.etcuda

MATVEC = MatvecLaunch(False, 1, 0, 4, 32, 1, 1, 0)
MATMUL = MatmulLaunch(64, 16, 4, 4, 3, 0, 0, 0, 0)
CASES = [
    Case(),
    Case(offset="minimum", group_size=128),
    Case("int8", offset="symmetric", storage="codes", group_size=16),
]


def cpu(tensors: Any) -> list[Any]:
    return [None if each is None else each.cpu() for each in tensors]


def arguments(**changes: Any) -> dict[str, Any]:
    """Good arguments of ``int4_linear``, with changes."""
    weight = make(Case(n=8))
    stored = cpu(weight.stored)
    good: dict[str, Any] = {
        "x": torch.ones(2, 3, 256),
        **dict(zip(("qdata", "scale", "zero", "scale_step", "zero_step"), stored, strict=True)),
        "bias": torch.zeros(8),
        "group_size": 32,
        "activation_dtype": "int8",
    }
    return good | changes


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_on_the_cpu(case: Case, dtype: torch.dtype) -> None:
    weight = make(case, dtype)
    stored, bias, values = cpu(weight.stored), cpu([weight.bias])[0], weight.values.cpu()
    torch.manual_seed(0)
    x = torch.randn(2, 3, case.k).to(dtype)
    operator = find(case.format_name).linear_op
    flat = x.reshape(-1, case.k)
    for activation, wanted in (("exact", flat.double()), ("int8", rounded(flat))):
        got = operator(x, *stored, bias, case.group_size, activation)
        assert (got.shape, got.dtype) == ((2, 3, case.n), dtype)
        expected = wanted @ values.T + bias.double()
        assert error(got.reshape(-1, case.n), expected) < (1e-5 if dtype == torch.float32 else 5e-3)
    assert operator(x[:, :0], *stored, None, case.group_size, "int8").shape == (2, 0, case.n)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_embedding_on_the_cpu(case: Case) -> None:
    weight = make(case)
    operator = find(case.format_name).embedding_op
    indices = torch.tensor([[0, 8], [3, 3]])
    got = operator(indices, *cpu(weight.stored), case.group_size, torch.float16)
    assert (got.shape, got.dtype) == ((2, 2, case.k), torch.float16)
    assert error(got.flatten(0, 1), weight.values.cpu()[indices.flatten()]) < 1e-3
    assert operator(indices[:0], *cpu(weight.stored), case.group_size, torch.float32).shape == (0, 2, case.k)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype": ({"x": torch.ones(2, 256).int()}, KernelArgumentError, "x: expected bfloat16, float16 or float32, got"),
    "K": ({"x": torch.ones(2, 128)}, KernelArgumentError, "x: expected its last dimension to be 256, got 128"),
    "scalar": ({"x": torch.ones(())}, KernelArgumentError, r"x: expected at least one dimension .*, got \(\)"),
    "activation_dtype": (
        {"activation_dtype": "int4"},
        KernelArgumentError,
        "activation_dtype: expected 'int8' or 'exact', got 'int4'",
    ),
    "several weights": (
        {
            "qdata": torch.ones(3, 8, 128).byte(),
            "scale": torch.ones(3, 8, 8).half(),
            "zero": torch.ones(3, 8, 8).byte(),
        },
        WeightFormatError,
        r"qdata: expected the integers of one weight \[N, K\], got those of a weight \[3, 8, 256\]. Take one of",
    ),
    "bias size": ({"bias": torch.ones(9)}, KernelArgumentError, "bias: expected its size to be 8, got 9"),
    "bias rank": ({"bias": torch.ones(8, 1)}, KernelArgumentError, r"bias: expected one dimension \[N\], got \(8, 1\)"),
    "bias dtype": ({"bias": torch.ones(8).int()}, KernelArgumentError, "bias: expected a floating dtype, got"),
    "group": ({"group_size": 64}, WeightFormatError, r"scale: expected shape \[8, 4\] .*, got \[8, 8\]"),
    "no group": ({"group_size": 48}, WeightFormatError, "expected one of 32, 64, 128, 256, got 48"),
    "qdata": ({"qdata": torch.ones(8, 128)}, WeightFormatError, "qdata: expected torch.uint8 .*, got torch.float32"),
    "no rows": ({"qdata": torch.ones(0, 128).byte()}, WeightFormatError, r"every size at least 1, got \[0, 256\]"),
    "scale": (
        {"scale": torch.ones(7, 8).half()},
        WeightFormatError,
        r"scale: expected shape \[8, 8\] .*, got \[7, 8\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    changes, kind, message = BAD[name]
    good = arguments(**changes)
    # The format alone says which group sizes there are.
    owner = "Int4Format" if name == "no group" else "int4_{}"
    with pytest.raises(kind, match=f"{owner.format('linear')}: .*{message}"):
        torch.ops.etcuda.int4_linear(*good.values())
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) if isinstance(each, Tensor) else each for each in good.values()]
        with pytest.raises(kind, match=message):
            torch.ops.etcuda.int4_linear(*fakes)
    if name != "activation_dtype":
        good = {key: value for key, value in good.items() if key != "activation_dtype"}
        with pytest.raises(kind, match=f"{owner.format('matvec')}: .*{message}"):
            ops.int4_matvec(*good.values(), *MATVEC.to_args())
        with pytest.raises(kind, match=f"{owner.format('matmul')}: .*{message}"):
            ops.int4_matmul(*good.values(), "int8", *MATMUL.to_args())


def _for_tokens(tokens: int) -> MatvecLaunch:
    return dataclasses.replace(MATVEC, tokens=tokens)


def test_tokens_beyond_the_kernels() -> None:
    good = {key: value for key, value in arguments().items() if key != "activation_dtype"}
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) if isinstance(each, Tensor) else each for each in good.values()]
        with pytest.raises(KernelArgumentError, match="int4_matvec: x: expected at most 4 tokens, got 6"):
            ops.int4_matvec(*fakes, *_for_tokens(4).to_args())
        with pytest.raises(KernelArgumentError, match="int4_matvec: tokens: expected 1, 2, 4 or 8, got 3"):
            ops.int4_matvec(*fakes, *_for_tokens(3).to_args())
        assert ops.int4_matvec(*fakes, *_for_tokens(8).to_args()).shape == (2, 3, 8)
        assert ops.int4_matvec(*fakes, *_for_tokens(8).to_args(), "silu").shape == (2, 3, 4)
        known = "'none', 'silu', 'gelu_tanh', 'gelu_erf'"
        with pytest.raises(KernelArgumentError, match=f"int4_matvec: activation: expected one of {known}, got 'relu'"):
            ops.int4_matvec(*fakes, *_for_tokens(8).to_args(), "relu")
        odd = [each[:7] if index in (1, 2, 3, 6) else each for index, each in enumerate(fakes)]
        with pytest.raises(KernelArgumentError, match=r"qdata: expected as many rows for the gate .* got 7 rows"):
            ops.int4_matvec(*odd, *_for_tokens(8).to_args(), "silu")
        assert ops.int4_matmul(*fakes, "int8", *MATMUL.to_args()).shape == (2, 3, 8)
        q, scale, total = quantize_activation(fakes[0])
        assert (q.shape, q.dtype, scale.shape, total.dtype) == ((6, 256), torch.int8, (6, 8), torch.float32)
        how = dataclasses.replace(_for_tokens(8), quantized=True)
        rest = (*fakes[1:], torch.bfloat16, *how.to_args())
        out = ops.int4_matvec_quantized(q, scale, total, *rest)
        assert (out.shape, out.dtype) == ((6, 8), torch.bfloat16)
        with pytest.raises(KernelArgumentError, match=r"q_sum: expected its last dimension to be 8, got 7"):
            ops.int4_matvec_quantized(q, scale, total[:, :7], *rest)
        with pytest.raises(KernelArgumentError, match=r"q: expected int8, got torch\.float32"):
            ops.int4_matvec_quantized(fakes[0][0], scale, total, *rest)


BAD_REORDERED: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"reordered": torch.ones(64, 256)}, "reordered: expected float16, got torch.float32."),
    "type for others": (
        {"reordered": torch.ones(64, 256).bfloat16()},
        "reordered: expected float16, got torch.bfloat16.",
    ),
    "rank": (
        {"reordered": torch.ones(64).half()},
        "reordered: expected 2 dimensions [M rounded up, K rounded up], got (64,).",
    ),
    "K": ({"reordered": torch.ones(64, 128).half()}, "reordered: expected its last dimension to be 256, got 128."),
    "rows": (
        {"reordered": torch.ones(6, 256).half()},
        "reordered: expected at least 16 rows, those of factor rounded up to block_m, got 6.",
    ),
    "factor type": ({"factor": torch.ones(6).half()}, "factor: expected float32, got torch.float16."),
    "factor rank": ({"factor": torch.ones(6, 1)}, "factor: expected one dimension [M], got (6, 1)."),
    "dtype": ({"dtype": torch.int8}, "dtype: expected bfloat16, float16 or float32, got torch.int8."),
    "activation_dtype": ({"activation_dtype": "int4"}, "activation_dtype: expected 'int8' or 'exact', got 'int4'."),
    "block_m": ({"block_m": 24}, "block_m: expected a power of two of at least 16, got 24."),
    "bias": ({"bias": torch.ones(9)}, "bias: expected its size to be 8, got 9."),
}


def reordered_arguments(**changes: Any) -> list[Any]:
    """Good arguments of ``int4_matmul_reordered`` for 6 rows, with changes."""
    weight = arguments()
    reordered, factor, semaphores = reorder_activation(weight.pop("x"), 4, weight.pop("activation_dtype"), 64, 0, 0)
    good = (
        {"reordered": reordered, "factor": factor, "semaphores": semaphores}
        | weight
        | {"dtype": torch.bfloat16, "activation_dtype": "int8"}
        | dataclasses.asdict(MATMUL)
    )
    return list((good | changes).values())


def _refuses(given: list[Any], message: str) -> None:
    with pytest.raises(KernelArgumentError, match=re.escape(f"int4_matmul_reordered: {message}")):
        ops.int4_matmul_reordered(*given)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) if isinstance(each, Tensor) else each for each in given]
        with pytest.raises(KernelArgumentError, match=re.escape(message)):
            ops.int4_matmul_reordered(*fakes)


@pytest.mark.parametrize("name", BAD_REORDERED)
def test_what_is_not_reordered(name: str) -> None:
    changes, message = BAD_REORDERED[name]
    _refuses(reordered_arguments(**changes), message)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(("first", "to", "copied"), [(0, 16, False), (8, 16, True), (8, 8, False), (3, 8, True)])
def test_addresses_are_as_round_as_copies_need(first: int, to: int, copied: bool, fake: bool) -> None:
    x = torch.arange(64, dtype=torch.uint8)[first:]
    assert x.untyped_storage().data_ptr() % 16 == 0
    if fake:
        x = FakeTensorMode().from_tensor(x)
    got = aligned(x, to)
    assert (got is not x) == copied
    assert fake or (torch.equal(got, x) and got.data_ptr() % to == 0)


WARPGROUPS = {"block_n": 256, "ctas": 4, "warpgroups": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_n": 128}, "block_n: expected 64 for each of 4 warpgroups, got 128."),
        ({"ctas": 0}, "ctas: expected 1 to 1024, got 0."),
        ({"ctas": 1025}, "ctas: expected 1 to 1024, got 1025."),
        (
            {"reordered": torch.ones(64, 256)},
            "reordered: expected float16, or bfloat16 as reordered for warpgroups, got torch.float32.",
        ),
        ({}, "semaphores: expected at least 4, of a tiled order, got 1."),
        (
            {"factor": torch.ones(2, 6)},
            "factor: expected one dimension [M], or [S, M] with S from 2 to K / 256, got (2, 6).",
        ),
        (
            {"group_size": 64, "scale": torch.ones(8, 4).half(), "zero": torch.zeros(8, 4, dtype=torch.uint8)},
            "warpgroups: expected 0 but for int4 in groups of 32 with fp16 scales, below 4 GiB, K a multiple of 256 "
            "below 65536, on sm_90, got int4, groups of 64, fp16 scales, 8 x 256 on sm_90.",
        ),
    ],
)
def test_what_the_kernel_for_warpgroups_does_not_take(changes: dict[str, Any], message: str) -> None:
    _refuses(reordered_arguments(**WARPGROUPS | changes), message)


def test_shapes_of_ordered_activations() -> None:
    good = reordered_arguments()
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) if isinstance(each, Tensor) else each for each in good]
        out = ops.int4_matmul_reordered(*fakes)
        assert (out.shape, out.dtype) == ((6, 8), torch.bfloat16)
    for shape, rows in (((2, 3, 160), 64), ((0, 160), 64), ((65, 160), 128)):
        for bits in (4, 8):
            real = reorder_activation(torch.ones(shape), bits, "exact", 64, 0, 0)
            with FakeTensorMode():
                fake = reorder_activation(torch.ones(shape), bits, "exact", 64, 0, 0)
            for reordered, factor, semaphores in (real, fake):
                assert (semaphores.shape, semaphores.dtype) == ((1,), torch.int32)
                assert (reordered.shape, reordered.dtype) == ((rows, 256), torch.float16)
                assert (factor.shape, factor.dtype) == ((math.prod(shape[:-1]),), torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_want_a_gpu() -> None:
    good = [value for key, value in arguments().items() if key != "activation_dtype"]
    with pytest.raises(KernelArgumentError, match="int4_matvec: x: expected a tensor on a GPU, got one on cpu"):
        ops.int4_matvec(*good, *_for_tokens(8).to_args())
    with pytest.raises(KernelArgumentError, match="int4_matmul: x: expected a tensor on a GPU, got one on cpu"):
        ops.int4_matmul(*good, "int8", *MATMUL.to_args())
    with pytest.raises(KernelArgumentError, match="matmul_reordered: x: expected a tensor on a GPU, got one on cpu"):
        ops.int4_matmul_reordered(*reordered_arguments())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 48), "expected K to be a multiple of 32, got K = 48"),
        (torch.ones(2, 0), "expected K to be a multiple of 32, got K = 0"),
        (torch.ones(2, 32).int(), "expected bfloat16, float16 or float32, got torch.int32"),
    ],
)
def test_what_cannot_be_quantized(x: Tensor, message: str) -> None:
    with pytest.raises(KernelArgumentError, match=f"quantize_activation: x: {message}"):
        quantize_activation(x)
    with pytest.raises(KernelArgumentError, match=f"reorder_activation: x: {message}"):
        reorder_activation(x, 4, "int8", 16, 0, 0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ((5, "int8", 16), "bits: expected 4 or 8, got 5."),
        ((4, "int4", 16), "activation_dtype: expected 'int8' or 'exact', got 'int4'."),
        ((4, "int8", 8), "block_m: expected a power of two of at least 16, got 8."),
        ((4, "int8", 48), "block_m: expected a power of two of at least 16, got 48."),
    ],
)
def test_orders_that_there_are_not(how: tuple[int, str, int], message: str) -> None:
    with pytest.raises(KernelArgumentError, match=re.escape(f"reorder_activation: {message}")):
        reorder_activation(torch.ones(2, 32), *how, 0, 0)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rest = arguments()
        del self.rest["x"]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.etcuda.int4_linear(x, *self.rest.values())
        return result


def test_export_keeps_one_node_for_any_number_of_rows() -> None:
    model = Model()
    rows = torch.export.Dim("rows", min=0, max=64)
    program = torch.export.export(model, (torch.randn(5, 256),), dynamic_shapes=({0: rows},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.etcuda.int4_linear.default]
    for count in (0, 1, 7, 64):
        x = torch.randn(count, 256)
        torch.testing.assert_close(program.module()(x), model(x))


def test_the_records() -> None:
    names = {"int4_matvec", "int4_matmul", "int8_matvec", "int8_matmul", "quantize_activation", "reorder_activation"}
    assert {f"etcuda::{name}" for name in names} <= {record.op for record in registry.records()}
