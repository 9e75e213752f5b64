"""Rotary positions and writes to caches become one kernel, and the program computes the same."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from etcuda.passes.graph.calls import arguments
from tests.passes.attention import rotary_programs as programs
from tests.passes.attention.attention_routing import calls
from tests.passes.attention.rotary_programs import PLACES, Attention, compare, fused, rewritten

pytestmark = pytest.mark.usefixtures("no_table")

STYLES = {
    "halves": (programs.halves, False),
    "halves in fp32": (programs.halves_in_fp32, False),
    "neighbours": (programs.neighbours, True),
    "pairs": (programs.neighbours_as_pairs, True),
    "complex": (programs.neighbours_as_complex, True),
}


def only(program: Any) -> dict[str, Any]:
    (node,) = fused(program)
    return arguments(node)


@pytest.mark.parametrize(
    ("style", "tokens_first"), [*((style, index % 2 == 1) for index, style in enumerate(STYLES)), ("halves", True)]
)
def test_rotations_of_libraries(style: str, tokens_first: bool) -> None:
    rotate, interleaved = STYLES[style]
    model = Attention(rotate, tokens_first=tokens_first)
    program = rewritten(model)
    found = only(program)
    assert (found["rotary_dim"], found["interleaved"], found["consecutive"]) == (16, interleaved, False)
    assert (found["q_weight"], found["k_weight"], found["eps"], found["pdl"]) == (None, None, 0.0, 1)
    assert not any(node.target is torch.ops.aten.index_put.default for node in program.graph.nodes)
    compare(model, program, (3, 3, 3))


@pytest.mark.slow
@pytest.mark.parametrize("style", ["halves", "pairs"])
def test_a_part_of_a_head(style: str) -> None:
    rotate, interleaved = STYLES[style]
    model = Attention(programs.partly(rotate), head_dim=24, rotary_dim=6)
    program = rewritten(model, dynamic=True)
    found = only(program)
    assert (found["rotary_dim"], found["interleaved"]) == (6, interleaved)
    compare(model, program, (3, 2, 7))


@pytest.mark.parametrize(
    ("norm", "eps", "offset", "tokens_first"),
    [(programs.llama_norm, 1e-5, 0.0, True), (programs.gemma_norm, 1e-6, 1.0, False)],
)
def test_norms_in_front(norm: Any, eps: float, offset: float, tokens_first: bool) -> None:
    model = Attention(programs.halves, norm=norm, tokens_first=tokens_first, batch=2)
    program = rewritten(model)
    found = only(program)
    assert found["eps"] == pytest.approx(eps, rel=1e-6)
    assert found["weight_offset"] == offset
    assert (str(found["q_weight"]), str(found["k_weight"])) == ("p_q_weight", "p_k_weight")
    compare(model, program, (3, 3))


def test_fp32() -> None:
    model = Attention(programs.halves_in_fp32, dtype=torch.float32)
    program = rewritten(model)
    assert only(program)["q"].meta["val"].dtype == torch.float32
    compare(model, program, (3, 3))


class OneNorm(Attention):
    """The queries alone are normed."""

    def turned(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = programs.llama_norm(x, weight) if x.shape[2] == programs.HEADS else x
        return super().turned(x, weight, cos, sin)


def test_a_norm_of_queries_alone_stays() -> None:
    model = OneNorm(programs.halves)
    program = rewritten(model)
    assert only(program)["eps"] == 0
    compare(model, program, (3, 3))


class FirstPlace(Attention):
    """As static caches of transformers: tokens stand one behind the other, from the first position on."""

    def write(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().write(k, v, positions.amin() + torch.arange(k.shape[2]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_places_that_follow_each_other(dynamic: bool) -> None:
    model = FirstPlace(programs.halves)
    program = rewritten(model, dynamic=dynamic)
    found = only(program)
    assert (found["consecutive"], list(found["positions"].meta["val"].shape)) == (True, [1])
    compare(model, program, (3, 3, 3))


def test_many_tokens_have_other_ctas() -> None:
    configs = [only(rewritten(Attention(programs.halves), length)) for length in (1, 17)]
    assert [(found["heads"], found["num_warps"]) for found in configs] == [(1, 1), (8, 4)]


class Doubtful(Attention):
    """One thing is not as the kernel has it."""

    def __init__(self, what: str) -> None:
        super().__init__(programs.backwards if what == "sign" else programs.halves_in_fp32)
        self.what = what
        self.register_buffer("other", self.cos.flip(0))
        self.register_buffer("counts", torch.zeros(1, programs.KV_HEADS, PLACES, 16, dtype=torch.bfloat16))

    def turned(self, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        is_key = x.shape[2] == programs.KV_HEADS
        if is_key and self.what == "keys are not rotated":
            return x.transpose(1, 2)
        if is_key and self.what == "tables":
            cos = self.other[: cos.shape[0]]
        if self.what == "tables of heads":
            cos = cos[None, None] * torch.linspace(0.5, 1, x.shape[2])[:, None, None]
        return super().turned(x, weight, cos, sin)

    def write(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.what == "accumulates":
            places = (slice(None), slice(None), positions)
            self.k_cache.index_put_((torch.arange(1)[:, None, None], torch.arange(2)[:, None], positions), k, True)
            self.v_cache[places] = v
            return self.k_cache, self.v_cache
        if self.what == "old cache":
            old = self.k_cache.sum()
            return self.k_cache.index_copy_(2, positions, k), self.v_cache.index_copy_(2, positions, v) + old
        if self.what == "places":
            return self.k_cache.index_copy_(2, positions, k), self.v_cache.index_copy_(2, positions.flip(0), v)
        if self.what == "keys are read":
            return self.k_cache.index_copy_(2, positions, k), self.v_cache.index_copy_(2, positions, v + k)
        if self.what == "no state":
            return self.k_cache.index_copy(2, positions, k), self.v_cache.index_copy(2, positions, v)
        return super().write(k, v, positions)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("sign", "is no rotation of a tensor of its size"),
        ("keys are not rotated", "is no rotation of a tensor of its size"),
        ("tables", "queries are rotated by .*, keys by"),
        ("tables of heads", "queries are rotated by .*, keys by|expected one table for all heads"),
        ("accumulates", "writes to other places than the third dimension has"),
        ("old cache", "is read as it was before"),
        ("places", "written to one cache, or at different places"),
        ("keys are read", "is read by others too"),
        ("no state", "is no new value of a buffer"),
    ],
)
def test_in_doubt_nothing_is_fused(what: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Doubtful(what)
    with caplog.at_level(logging.INFO, logger="etcuda.passes.attention.fuse_rotary"):
        program = rewritten(model)
    assert not fused(program)
    assert len(calls(program)) == 1
    (message,) = [each.getMessage() for each in caplog.records if "stay by themselves" in each.getMessage()]
    assert re.search(reason, message), message
