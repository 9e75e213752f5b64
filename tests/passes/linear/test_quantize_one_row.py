"""Products of one token take quantized activations where the tables say that this is faster."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.kernels.activations.choose import table as activation_table
from etcuda.kernels.activations.choose.configs import ActivationConfig
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.formats.registry import find
from etcuda.kernels.linear.choose import table as int4_table
from etcuda.kernels.linear.choose.configs import MatvecConfig
from etcuda.kernels.linear.problem import LinearProblem
from tests.passes.linear.activation_programs import Block, Llama, Shapes, arguments, run
from tests.passes.linear.quantized_programs import (
    FUSION,
    GPU,
    HOST,
    calls,
    close,
    export,
    lowered,
    make,
    quantized,
    runnable,
)

OWN, BEFORE = MatvecConfig(0, 0, 4, 64, 2, 1, 0), MatvecConfig(1, 0, 2, 32, 1, 1, 0)
X = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def linear_table(bits: int, own: float = 2.0, before: float = 3.0) -> int4_table.Table:
    problem = LinearProblem(1, 64, 64, f"int{bits}", offset="symmetric" if bits == 8 else "zero_point")
    candidates = tuple(sorted(((OWN, own), (BEFORE, before)), key=lambda row: row[1]))
    many = int4_table.Entry("matvec", dataclasses.replace(problem, m=2), ((BEFORE, 1.0),), 1)
    return int4_table.Table("sm_90", {"gpu": "made up"}, (int4_table.Entry("matvec", problem, candidates, 1), many))


def measured(
    monkeypatch: pytest.MonkeyPatch,
    quantize_us: float | None,
    own: float = 2.0,
    before: float = 3.0,
    early_us: float | None = None,
) -> None:
    """Tables: a product takes ``own`` us if it quantizes itself, ``before`` with a quantization of ``quantize_us``.

    A kernel in front gains ``early_us`` by being launched early.
    """
    monkeypatch.setattr(int4_table, "load", lambda name, arch: linear_table(find(name).bits, own, before))
    entry = activation_table.Entry(
        "quantize", ActivationProblem(1, 64), ((ActivationConfig(1, 1), quantize_us or 0.0),), 1
    )
    entries = [entry]
    if early_us is not None:
        for kernel, us in (("gate", 1.0), ("plain", 1.0 + early_us)):
            entries.append(activation_table.Entry(kernel, entry.problem, ((ActivationConfig(1, 1), us),), 1))
    found = None if quantize_us is None else activation_table.Table("sm_90", {}, tuple(entries))
    monkeypatch.setattr(activation_table, "load", lambda arch: found)


@pytest.mark.parametrize("config", [Int4CoalescedConfig(), Int8CoalescedConfig()], ids=["int4", "int8"])
@pytest.mark.parametrize("shape", [(1, 64), (1, 1, 64), (64,)])
def test_norms_and_gates_quantize_for_products_of_one_token(
    config: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, quantize_us=1.5)
    model = quantized(make(Block, norm=Llama, read="h"), config)
    x = X.reshape(shape)
    program = lowered(export(model, x, x.clone()))
    assert not calls(program, "int4_matvec", "int8_matvec", "quantize_activation")
    assert len(calls(program, "rms_norm_quantize")) == 2
    assert len(calls(program, "gate_quantize")) == 1
    for node in calls(program, "int4_matvec_quantized", "int8_matvec_quantized"):
        found = arguments(node)
        wanted = (1, BEFORE.block_n, BEFORE.blocks, BEFORE.num_warps, BEFORE.num_stages, 1)
        assert tuple(found[name] for name in ("tokens", "block_n", "blocks", "num_warps", "num_stages", "pdl")) == (
            wanted
        )
    assert close(run(program, model, x, x), model(x, x))


@pytest.mark.parametrize(
    ("quantize_us", "early_us", "switched", "text"),
    [
        (1.0, None, True, "quantized before, which takes 1.00 us alone"),
        (0.9, None, False, "with K = 64 they are faster by themselves, though quantizing takes 0.90 us"),
        (0.9, 0.05, False, "with K = 64 they are faster by themselves"),
        (0.9, 0.15, True, "quantized before, which takes 0.90 us alone"),
        (0.9, -0.5, False, "with K = 64 they are faster by themselves"),
        (None, None, False, "no table of what quantizing costs on sm_90; `etcuda tune activations` writes it"),
    ],
)
def test_the_tables_decide(
    quantize_us: float | None,
    early_us: float | None,
    switched: bool,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "etcuda")
    measured(monkeypatch, quantize_us, early_us=early_us)
    model = quantized(make(Shapes))
    program = lowered(export(model, X))
    assert bool(calls(program, "rms_norm_quantize")) == switched
    assert bool(calls(program, "int4_matvec")) != switched
    assert text in caplog.text


def test_products_together_decide_for_their_input(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, quantize_us=1.5)
    model = quantized(make(Block, norm=Llama))
    program = lowered(export(model, X, X.clone()), without=FUSION)
    assert len(calls(program, "int4_matvec_quantized")) == 4
    assert len(calls(program, "rms_norm_quantize")) == 2
    (gate,) = calls(program, "gate_quantize")
    assert arguments(gate)["up"] is not None
    assert close(run(program, model, X, X), model(X, X))


class Read(Shapes):
    """The norm is an output too."""

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        return self.q(y.reshape(1, 1, 64)), y + 1


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.q(x + 1)
        return out


def test_what_others_read_and_what_is_no_norm_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "etcuda")
    measured(monkeypatch, quantize_us=1.5)
    for kind in (Read, Plain):
        program = lowered(export(quantized(make(kind)), X))
        assert len(calls(program, "int4_matvec")) == 1
        assert not calls(program, "rms_norm_quantize", "quantize_activation")
    assert re.search(r"quantize by themselves: aten_add_\w+ reads \w+ too", caplog.text)


@pytest.mark.parametrize("config", [GPU, HOST], ids=["sm_90", "host"])
def test_nothing_is_done_without_products(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, quantize_us=1.5)
    model = quantized(make(Plain), Int4CoalescedConfig(activation_dtype="exact"))
    program = lowered(export(model, X), config)
    assert not calls(program, "rms_norm_quantize", "quantize_activation")
    assert close(runnable(program)(X), model(X))
