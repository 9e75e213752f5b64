"""The attention operators: the kernels in Triton's interpreter, and what the operators refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from etcuda.errors import KernelArgumentError
from etcuda.kernels.attention.op import attention_split, attention_tiled
from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS, UPPER_LEFT, AttentionProblem, cost, refuse
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.common import registry
from tests.kernels.interpreter import BROKEN, run_checks


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("attention/interpreted.py")


def arguments(**changes: Any) -> list[Any]:
    """Good arguments of both operators but the configuration, with changes."""
    good: dict[str, Any] = {
        "q": torch.ones(2, 4, 3, 16, dtype=torch.float16),
        "k": torch.ones(2, 2, 8, 16, dtype=torch.float16),
        "v": torch.ones(2, 2, 8, 16, dtype=torch.float16),
        "mask": None,
        "kv_len": None,
        "positions": None,
        "scale": 0.25,
        "causal": FULL,
        "window": 0,
        "softcap": 0.0,
    }
    return [value for name, value in (good | changes).items() if name not in EXTRAS]


EXTRAS = ("sinks", "ring")
HALF = torch.float16
RING = {"ring": True, "positions": torch.arange(3), "causal": POSITIONS, "window": 6}
NAMES = ("q", "k", "v", "mask", "kv_len", "positions", "scale", "causal", "window", "softcap")
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"q": torch.ones(2, 4, 3, 16)}, "q: expected bfloat16 or float16, got torch.float32"),
    "dtypes": ({"v": torch.ones(2, 2, 8, 16, dtype=torch.bfloat16)}, "v: expected the dtype of q, torch.float16, got"),
    "rank": ({"k": torch.ones(2, 8, 16, dtype=HALF)}, r"k: expected 4 dimensions .*, got \(2, 8, 16\)"),
    "device": ({"v": torch.ones(2, 2, 8, 16, dtype=HALF, device="meta")}, "v: expected the device of q, cpu, got meta"),
    "batch": ({"k": torch.ones(3, 2, 8, 16, dtype=HALF)}, "k: expected its batch to be 2, got 3"),
    "length": ({"v": torch.ones(2, 2, 9, 16, dtype=HALF)}, "v: expected its length to be 8, got 9"),
    "heads": ({"v": torch.ones(2, 1, 8, 16, dtype=HALF)}, "v: expected its heads to be 2, got 1"),
    "head_dim": ({"k": torch.ones(2, 2, 8, 8, dtype=HALF)}, "k: expected its head_dim to be 16, got 8"),
    "groups": ({"q": torch.ones(2, 5, 3, 16, dtype=HALF)}, "expected heads of q to be a multiple of .* 2, got 5"),
    "wide": (
        {
            "q": torch.ones(2, 4, 3, 600, dtype=HALF),
            "k": torch.ones(2, 2, 8, 600, dtype=HALF),
            "v": torch.ones(2, 2, 8, 600, dtype=HALF),
        },
        "head_dim: expected 1 to 512, got 600",
    ),
    "mask shape": ({"mask": torch.ones(2, 8).bool()}, r"mask: expected its shape broadcastable to \(2, 4, 3, 8\)"),
    "mask rank": ({"mask": torch.ones(1, 1, 1, 3, 8).bool()}, r"mask: expected at most 4 dimensions, got \(1, 1, 1"),
    "mask dtype": ({"mask": torch.ones(3, 8).int()}, "mask: expected bool, float32, .*, got torch.int32"),
    "kv_len size": ({"kv_len": torch.tensor([1])}, "kv_len: expected its size to be 2, got 1"),
    "kv_len dtype": ({"kv_len": torch.ones(2)}, "kv_len: expected int32 or int64, got torch.float32"),
    "kv_len rank": ({"kv_len": torch.ones(2, 1).int()}, r"kv_len: expected one dimension .*, got \(2, 1\)"),
    "no positions": ({"causal": POSITIONS}, "positions: expected a tensor exactly if causal is 3, got None"),
    "positions": ({"positions": torch.arange(3)}, "positions: .* got a tensor with causal=0"),
    "positions size": ({"positions": torch.arange(4), "causal": POSITIONS}, "its last dimension to be 3, got 4"),
    "positions batch": ({"positions": torch.ones(3, 3).int(), "causal": POSITIONS}, "first dimension to be 2, got 3"),
    "positions rank": ({"positions": torch.tensor(3), "causal": POSITIONS}, r"expected \[L_q\] or \[batch, L_q\]"),
    "positions dtype": ({"positions": torch.ones(3), "causal": POSITIONS}, "positions: expected int32 or int64"),
    "causal": ({"causal": 9}, r"causal: expected one of 0 \(full\), .*, got 9"),
    "window": ({"window": -1, "causal": UPPER_LEFT}, "window: expected 0 for none, .*, got -1"),
    "window alone": ({"window": 3}, "window: expected 0 unless causal, got 3"),
    "scale": ({"scale": -1.0}, "scale: expected a positive finite number, got -1.0"),
    "sinks size": ({"sinks": torch.zeros(2)}, "sinks: expected its size to be 4, got 2"),
    "sinks rank": ({"sinks": torch.zeros(1, 4)}, r"sinks: expected one dimension \[num_heads\], got \(1, 4\)"),
    "sinks dtype": ({"sinks": torch.zeros(4).int()}, "sinks: expected a floating dtype, got torch.int32"),
    "ring mask": ({**RING, "mask": torch.ones(3, 8).bool()}, "mask: expected None for a ring, .* got a tensor"),
    "ring kv_len": ({**RING, "kv_len": torch.ones(2).int()}, "kv_len: expected None for a ring, .* got a tensor"),
    "ring in order": ({"ring": True}, r"causal: expected 3 \(positions\) for a ring, got 0"),
    "ring of all": ({**RING, "window": 0}, "window: expected a number of keys for a ring, got 0"),
    "ring too short": ({**RING, "window": 7}, "window: expected at most .* ring of 8 with 3 rows, got 7. Keep more"),
    "softcap": ({"softcap": -2.0}, "softcap: expected 0 for none, or a positive number, got -2.0"),
}
OPERATORS = {"split": (attention_split, (16, 16, 4, 2, 2, 2, 16, 0)), "tiled": (attention_tiled, (16, 16, 4, 2, 1, 4))}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kernel", OPERATORS)
def test_bad_arguments(name: str, kernel: str) -> None:
    changes, message = BAD[name]
    operator, config = OPERATORS[kernel]
    extras = {name: changes[name] for name in EXTRAS if name in changes}
    with pytest.raises(KernelArgumentError, match=f"attention_{kernel}: .*{message}"):
        operator(*arguments(**changes), *config, **extras)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments(**changes)]
        extras = {name: mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for name, a in extras.items()}
        with pytest.raises(KernelArgumentError, match=message):
            operator(*fakes, *config, **extras)


class Model(torch.nn.Module):
    def __init__(self, *rest: Any) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.etcuda.attention_split(q, k, v, *self.rest)
        return result


def test_bad_arguments_at_export() -> None:
    q, k, v, *rest = arguments(scale=-1.0)
    with pytest.raises(KernelArgumentError, match=r"scale: expected a positive finite number, got -1\.0"):
        torch.export.export(Model(*rest, *OPERATORS["split"][1]), (q, k, v))
    q, k, v, *rest = arguments()
    program = torch.export.export(Model(*rest, *OPERATORS["split"][1]), (q, k, v))
    assert any(node.target is torch.ops.etcuda.attention_split.default for node in program.graph.nodes)


def test_too_many_queries_for_the_split_kernel() -> None:
    q = torch.ones(2, 4, 17, 16, dtype=HALF)
    with pytest.raises(KernelArgumentError, match=r"L_q: expected at most 16 query rows, got 17. Use attention_tiled"):
        attention_split(*arguments(q=q), *OPERATORS["split"][1])


@pytest.mark.parametrize("kernel", OPERATORS)
def test_a_length_beyond_the_keys(kernel: str) -> None:
    operator, config = OPERATORS[kernel]
    with pytest.raises(KernelArgumentError, match="kv_len: expected at most L_kv = 8, got 9"):
        operator(*arguments(kv_len=torch.tensor([3, 9])), *config)


@pytest.mark.parametrize("kernel", OPERATORS)
def test_a_tensor_that_is_on_no_gpu(kernel: str) -> None:
    operator, config = OPERATORS[kernel]
    with pytest.raises(KernelArgumentError, match=r"expected a tensor on a GPU, got one on cpu. .*attention_reference"):
        operator(*arguments(), *config)


@pytest.mark.parametrize("kernel", OPERATORS)
def test_fake_results(kernel: str) -> None:
    operator, config = OPERATORS[kernel]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments()]
        result = operator(*fakes, *config)
    assert (result.shape, result.dtype) == ((2, 4, 3, 16), HALF)
    assert result.transpose(1, 2).is_contiguous()


# The reference


@pytest.mark.parametrize(
    ("mask", "is_causal"),
    [(None, False), (None, True), (torch.rand(2, 1, 3, 8) > 0.5, False), (torch.randn(4, 3, 8), False)],
)
def test_the_reference_is_pytorchs_attention(mask: torch.Tensor | None, is_causal: bool) -> None:
    q, k, v = torch.randn(2, 4, 3, 16), torch.randn(2, 2, 8, 16), torch.randn(2, 2, 8, 24)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=True)
    got = attention_reference(q, k, v, mask, causal=UPPER_LEFT if is_causal else FULL)
    torch.testing.assert_close(got, expected)


def test_the_references_positions() -> None:
    q, k = torch.randn(2, 2, 3, 16), torch.randn(2, 2, 8, 16)
    lengths = torch.tensor([8, 5])
    rows = torch.stack([torch.arange(length - 3, length) for length in lengths.tolist()])
    near = attention_reference(q, k, k, kv_len=lengths, causal=LOWER_RIGHT, window=2)
    torch.testing.assert_close(near, attention_reference(q, k, k, positions=rows, causal=POSITIONS, window=2))
    n = torch.arange(8)
    mask = (n <= rows[:, None, :, None]) & (n > rows[:, None, :, None] - 2)
    torch.testing.assert_close(near, attention_reference(q, k, k, mask))
    with pytest.raises(ValueError, match="expected positions, got None"):
        attention_reference(q, k, k, causal=POSITIONS)


def test_the_references_sinks_are_one_more_key_without_a_value() -> None:
    q, k = torch.randn(2, 4, 3, 16), torch.randn(2, 2, 8, 16)
    sinks = torch.randn(4)
    logits = torch.einsum("bhmd,bhnd->bhmn", q, k.repeat_interleave(2, 1)) * 0.25
    weights = torch.softmax(torch.cat([logits, sinks[:, None, None].expand(2, 4, 3, 1)], -1), -1)[..., :-1]
    expected = torch.einsum("bhmn,bhnd->bhmd", weights, k.repeat_interleave(2, 1))
    torch.testing.assert_close(attention_reference(q, k, k, sinks=sinks), expected)


@pytest.mark.parametrize("start", [0, 3, 6, 29])
def test_the_references_ring_is_the_sequence_that_was_written(start: int) -> None:
    l_q, slots, window = 3, 7, 5
    every = torch.randn(2, 2, 40, 16)
    ring = torch.zeros(2, 2, slots, 16)
    for position in range(start + l_q):
        ring[:, :, position % slots] = every[:, :, position]
    q, positions = torch.randn(2, 4, l_q, 16), torch.arange(start, start + l_q)
    expected = attention_reference(q, every, every, positions=positions, causal=POSITIONS, window=window)
    got = attention_reference(q, ring, ring, positions=positions, causal=POSITIONS, window=window, ring=True)
    torch.testing.assert_close(got, expected)
    called = torch.ops.etcuda.attention(q, ring, ring, None, positions, None, 0.25, window, 0.0, True)
    torch.testing.assert_close(called, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(2, 3, 16)}, r"attention: q: expected 4 dimensions .*, got \(2, 3, 16\)"),
        ({"window": 3}, "attention: window: expected 0 without positions, got 3"),
        ({"sinks": torch.zeros(3)}, "attention: sinks: expected its size to be 4, got 3"),
        ({"ring": True}, r"attention: causal: expected 3 \(positions\) for a ring, got 0"),
    ],
)
def test_bad_arguments_of_models(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "q": torch.zeros(2, 4, 3, 16), "k": torch.zeros(2, 2, 8, 16), "v": torch.zeros(2, 2, 8, 16), "mask": None,
        "positions": None, "sinks": None, "scale": 1.0, "window": 0, "softcap": 0.0, "ring": False,
    }  # fmt: skip
    with pytest.raises(KernelArgumentError, match=message):
        torch.ops.etcuda.attention(**(given | changes))


# Problems


def test_the_most_rows_of_the_split_kernel() -> None:
    split, tiled = (registry.find(f"etcuda::attention_{name}") for name in ("split", "tiled"))
    problem = AttentionProblem(1, 8, 2, 64, 17, 100)
    assert split.refuse(problem) == "L_q is at most 16, got 17"
    assert split.refuse(dataclasses.replace(problem, l_q=5, max_l_q=None)) == "L_q is at most 16, got 5"
    assert split.refuse(dataclasses.replace(problem, l_q=5, max_l_q=16)) is None
    assert tiled.refuse(problem) is None


def test_a_call_in_numbers() -> None:
    given = dict(zip(NAMES, arguments(causal=LOWER_RIGHT, window=2, mask=torch.ones(3, 8).bool()), strict=True))
    expected = AttentionProblem(2, 4, 2, 16, 3, 8, HALF, LOWER_RIGHT, 2, has_mask=True, scale=0.25)
    assert registry.find("etcuda::attention_tiled").problem_of(given) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float32}, "the kernels take bfloat16 and float16, got float32"),
        ({"head_dim": 640}, "head_dim is at most 512, got 640"),
        ({"num_heads": 7}, "num_heads is a multiple of num_kv_heads, got 7 and 2"),
        ({"dropout": 0.1}, "dropout is 0, got 0.1"),
        ({"scale": 0.0}, "scale is positive and finite, got 0.0"),
        ({}, None),
    ],
)
def test_reasons(change: dict[str, Any], reason: str | None) -> None:
    good = {"batch": 1, "num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "l_q": 1, "l_kv": 100}
    assert refuse(AttentionProblem(**(good | change))) == reason


def test_costs() -> None:
    decode = AttentionProblem(2, 32, 16, 256, 1, 1000)
    assert cost(decode).nbytes == 2 * 256 * (2 * 2 * 16 * 1000 + 2 * 2 * 32)
    assert cost(decode).flops == 4 * 2 * 32 * 1000 * 256
    causal = AttentionProblem(1, 1, 1, 64, 100, 100, causal=UPPER_LEFT)
    assert causal.visible_pairs == 5050
    window = AttentionProblem(1, 1, 1, 64, 1, 1000, causal=LOWER_RIGHT, window=64)
    assert window.visible_keys == 64
    assert cost(decode).floor_us(4.36e12, 8e14) == pytest.approx(cost(decode).nbytes / 4.36e6)
