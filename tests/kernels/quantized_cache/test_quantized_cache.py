"""Caches in 8 and 4 bits: the kernels in Triton's interpreter, the formats, and what the operators refuse."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from etcuda.errors import KernelArgumentError
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.common.registry import find
from etcuda.kernels.quantized_cache.codes import decode, encode
from etcuda.kernels.quantized_cache.configs import MAX_SPLIT_ROWS, choose
from etcuda.kernels.quantized_cache.formats import CUBIC, FORMATS, LEVELS, THRESHOLDS
from etcuda.kernels.quantized_cache.problem import QuantizedProblem
from etcuda.kernels.quantized_cache.rotation import hadamard, rotate, signs, unrotate
from tests.kernels.interpreter import BROKEN, run_checks
from tests.kernels.quantized_cache.quantized_cache_checks import Case


@pytest.mark.slow
@pytest.mark.skipif(BROKEN, reason="the interpreter of this Triton fails with this NumPy")
def test_kernels_in_the_interpreter() -> None:
    run_checks("quantized_cache/interpreted.py")


@pytest.mark.parametrize("width", [32, 64, 128, 256, 512])
def test_the_rotation_is_orthogonal(width: int) -> None:
    identity = torch.eye(width)
    matrix = rotate(identity)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-5)
    torch.testing.assert_close(unrotate(matrix), identity, rtol=0, atol=1e-5)
    entry = [(-1.0) ** bin(i & 5).count("1") for i in range(width)]
    assert hadamard(identity)[5].tolist() == entry
    # Part of the format: another seed would be another one.
    assert signs(width)[:8].tolist() == SIGNS


SIGNS = [-1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0]


def test_e4m3_is_that_of_pytorch() -> None:
    x = torch.linspace(-448, 448, 4097).repeat(2, 1)
    x[1] *= 2.0**-14
    codes, scale = encode(torch.cat((x, torch.full((2, 1), 448.0)), -1), "fp8")
    wanted = (torch.cat((x, torch.full((2, 1), 448.0)), -1) / scale.float()[:, None]).clamp(-448, 448)
    assert torch.equal(codes, wanted.to(torch.float8_e4m3fn).view(torch.uint8))
    finite = torch.arange(256, dtype=torch.uint8)
    finite = finite[(finite & 0x7F) != 0x7F]
    decoded = decode(finite, torch.tensor(1.0, dtype=torch.bfloat16), "fp8")
    assert torch.equal(decoded, finite.view(torch.float8_e4m3fn).float())


def test_the_levels_are_those_of_the_cubic_in_float16_and_near_to_the_best() -> None:
    x = torch.arange(1, 16, 2, dtype=torch.float32)
    slope = (x * x * CUBIC[1] + CUBIC[0]).to(torch.float16).float()
    assert torch.equal((slope * x).to(torch.float16).float(), torch.tensor(LEVELS))

    def density(at: float) -> float:
        return math.exp(-at * at / 2) / math.sqrt(2 * math.pi)

    def below(at: float) -> float:
        return 0.5 * (1 + math.erf(at / math.sqrt(2)))

    edges, error = [0.0, *THRESHOLDS, 9.0], 0.0
    for low, high, level in zip(edges, edges[1:], LEVELS, strict=False):
        share, mean = below(high) - below(low), density(low) - density(high)
        square = share + low * density(low) - high * density(high)
        error += 2 * (square - 2 * level * mean + level * level * share)
    assert 0.00950 < error < 0.00970


@pytest.mark.parametrize(("format", "most"), [("int8", 2e-4), ("fp8", 1e-3), ("tq4", 1.05e-2)])
def test_errors_of_the_formats(format: str, most: float) -> None:
    """Of vectors with a few large numbers, as keys have: a rotation spreads them."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 128, generator=random)
    x[:, 3] *= 10 if format == "tq4" else 1
    y = decode(*encode(x, format), format)
    y = unrotate(y) if FORMATS[format].is_rotated else y
    assert float((y - x).square().sum() / x.square().sum()) < most
    zero = decode(*encode(torch.zeros(1, 64), format), format)
    assert not zero.any()


def test_a_few_rows_have_their_keys_split() -> None:
    device = LocalDevice("sm_90", 132, 232448)
    for heads, kv_heads, head_dim in ((32, 16, 256), (32, 4, 512), (32, 8, 128)):
        base = Case("tq4", head_dim, heads, kv_heads, start=0).arguments()
        problem: QuantizedProblem = find("etcuda::quantized_attention").problem_of(base)
        long = dataclasses.replace(problem, attention=dataclasses.replace(problem.attention, l_kv=131072))
        config = choose(long, device)
        assert config.num_splits * kv_heads >= device.num_sms
        many = dataclasses.replace(long.attention, l_q=512, max_l_q=None)
        assert choose(dataclasses.replace(long, attention=many), device).num_splits == 1
        few = dataclasses.replace(long.attention, l_q=MAX_SPLIT_ROWS)
        assert choose(dataclasses.replace(long, attention=few), device).num_splits > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "int3"}, r"format: expected one of int8, fp8, tq4, got 'int3'"),
        ({"q": torch.zeros(1, 4, 1, 80)}, r"head_dim: expected a width that the format takes, got 80.*power of two"),
        ({"q": torch.zeros(1, 4, 1, 64, dtype=torch.float64)}, "q: expected bfloat16, float16 or float32"),
        ({"k": torch.zeros(1, 2, 37, 64, dtype=torch.uint8)}, "codes of k: expected its width to be 32, got 64"),
        ({"k": torch.zeros(1, 2, 37, 32)}, "codes of k: expected uint8"),
        ({"v_scale": torch.zeros(1, 2, 37)}, "scales of v: expected bfloat16"),
        ({"window": 3, "positions": None}, "window: expected 0 without positions, got 3"),
        ({"scale": 0.0}, "scale: expected a positive finite number, got 0.0"),
        ({"positions": torch.zeros(2, dtype=torch.long)}, "positions: expected its last dimension to be 1, got 2"),
    ],
)
def test_what_attention_refuses(changes: dict[str, Any], message: str) -> None:
    arguments = Case(start=0).arguments() | changes
    arguments = {name: each.cpu() if isinstance(each, torch.Tensor) else each for name, each in arguments.items()}
    with pytest.raises(KernelArgumentError, match=message):
        find("etcuda::quantized_attention").overload(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v": torch.zeros(1, 2, 3, 32)}, "v: expected its head_dim to be 64, got 32"),
        ({"positions": torch.zeros(3)}, "positions: expected int32 or int64"),
        ({"k_scale": torch.zeros(1, 2, 9, dtype=torch.bfloat16)}, "scales of k: expected its places to be 8, got 9"),
        ({"format": "tq4"}, "codes of k: expected its width to be 32, got 64"),
    ],
)
def test_what_a_store_refuses(changes: dict[str, Any], message: str) -> None:
    codes, scale = torch.zeros(1, 2, 8, 64, dtype=torch.uint8), torch.zeros(1, 2, 8, dtype=torch.bfloat16)
    x = torch.zeros(1, 2, 3, 64)
    arguments = {
        "k": x, "v": x, "positions": torch.arange(3), "k_cache": codes, "k_scale": scale, "v_cache": codes,
        "v_scale": scale, "format": "fp8",
    }  # fmt: skip
    with pytest.raises(KernelArgumentError, match=message):
        find("etcuda::quantized_cache_store").overload(**(arguments | changes))
