"""Programs with complex numbers, as pairs of reals, compute what they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from etcuda.options import BackendConfig, CompileOptions
from etcuda.passes.complex_numbers.rewrite import ComplexError, complex_to_pairs, has_complex
from etcuda.target import TARGETS
from tests.partitioner.programs import export
from tests.passes.complex_numbers.models import Accumulator, Filter, Rotary, Spectrogram, arithmetic, transforms

HOST = BackendConfig("host")
X = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(1))
A, B = X.flatten()[:24].reshape(4, 6), X.flatten()[24:48].reshape(4, 6)


def rewritten(program: ExportedProgram, config: BackendConfig = HOST) -> Callable[..., list[Tensor]]:
    before = program.graph_module.code
    made = complex_to_pairs(program, config)
    assert not has_complex(made)
    assert program.graph_module.code == before
    made.validate()

    def call(*inputs: Tensor) -> list[Tensor]:
        found: list[Tensor] = tree_leaves(made.module()(*inputs))
        return found

    return call


def check(got: list[Tensor], wanted: Any, tolerance: float = 2e-5) -> None:
    for index, (one, other) in enumerate(zip(got, tree_leaves(wanted), strict=True)):
        assert one.dtype == other.dtype, index
        scale = 1 + float(other.double().abs().max())
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale, msg=str(index))


@pytest.mark.parametrize(
    ("function", "inputs"),
    [(transforms, (X,)), (arithmetic, (A, B)), (transforms, (X.double(),))],
    ids=["transforms", "arithmetic", "float64"],
)
def test_operators(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
    call = rewritten(export(function, *inputs))
    check(call(*inputs), function(*inputs))


@pytest.mark.parametrize(
    "config", [HOST, BackendConfig(TARGETS["sm_90"], CompileOptions(allow_tf32=True))], ids=["host", "tf32"]
)
def test_models(config: BackendConfig) -> None:
    q, signal = torch.randn(2, 5, 3, 8), torch.randn(2, 200)
    cases: tuple[tuple[nn.Module, Tensor], ...] = (
        (Rotary(), q.bfloat16()), (Rotary(computed=True), q), (Spectrogram(), signal),
        (Filter(197), torch.randn(3, 197)),
    )  # fmt: skip
    for model, x in cases:
        check(rewritten(torch.export.export(model, (x,)), config)(x), model(x), 1e-5)


def test_products_are_sums_where_products_would_lose_bits() -> None:
    """TF32 has 10 bits; and a GPU's library has no product of float64 that the runtime calls."""
    aten = torch.ops.aten
    tf32, exact = CompileOptions(allow_tf32=True), CompileOptions()
    for dtype, options, wanted in ((torch.float32, tf32, 0), (torch.float32, exact, 2), (torch.float64, exact, 0)):
        program = export(lambda x: torch.fft.fft(torch.fft.fft(x)).real, torch.randn(3, 16, dtype=dtype))
        made = complex_to_pairs(program, BackendConfig(TARGETS["sm_90"], options))
        products = [node for node in made.graph.nodes if node.target is aten.mm.default]
        assert (len(products) > 0) == (wanted > 0)


def test_dynamic_sizes() -> None:
    time, batch = Dim("time", min=60, max=4000), Dim("batch", max=8)
    window = torch.hann_window(50)

    def spectrogram(x: Tensor) -> Tensor:
        return torch.stft(x, 50, 13, window=window, return_complex=True).abs()

    call = rewritten(export(spectrogram, torch.randn(2, 200), dynamic=[{0: batch, 1: time}]))
    for size in ((2, 61), (5, 999)):
        x = torch.randn(size)
        check(call(x), spectrogram(x))
    # The transformed length itself.
    call = rewritten(export(lambda x: torch.fft.rfft(x).abs(), torch.randn(2, 200), dynamic=[{1: time}]))
    x = torch.randn(2, 333)
    check(call(x), torch.fft.rfft(x).abs())


def test_state() -> None:
    model = Accumulator()
    program = torch.export.export(model, (torch.ones(3),))
    made = complex_to_pairs(program, HOST)
    assert program.state_dict["sum"].dtype == torch.complex64
    assert made.state_dict["sum"].shape == (3, 2)
    module, model = made.module(), Accumulator()
    for _ in range(3):
        check([module(torch.ones(3))], model(torch.ones(3)))


def test_the_argument_of_what_is_real_is_that_of_eager() -> None:
    x = -torch.ones(1, 130)
    got = rewritten(export(lambda x: torch.fft.rfft(x)[..., 0].angle(), x))(x)
    check(got, torch.full((1,), torch.pi))


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (lambda x: x.abs(), (A + 0j,), r"input inputs_0 is complex; take torch.view_as_real of it"),
        (lambda x: x * 1j, (A,), r"output mul is complex; return torch.view_as_real of it"),
        (lambda x: torch.linalg.inv(x[:, :4] * 1j).real, (A,), r"aten.linalg_inv_ex.default of complex numbers"),
        (
            lambda x: torch.cond(x.sum() > 0, lambda x: (x * 1j).abs(), lambda x: x + 1, (x,)),
            (A,),
            "complex numbers inside of control flow",
        ),
    ],
)
def test_what_is_refused_says_why(function: Any, inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ComplexError, match=message):
        complex_to_pairs(export(function, *inputs), HOST)
