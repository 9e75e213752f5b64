"""Calls of the operators of quantised models that formulas serve."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from etcuda.torch_private import quantized_operators
from tests.passes.decompositions.cases import Case, numbers

q = quantized_operators()

X = numbers(6, 12) * 3
INT8 = (torch.arange(72) * 37 % 256 - 128).reshape(6, 12).to(torch.int8)
UINT8 = (torch.arange(72) * 37 % 256).reshape(6, 12).to(torch.uint8)
SCALES, ZEROS = torch.arange(1.0, 7) / 70, torch.arange(6) - 3
SCALE, ZERO = torch.tensor([0.037], dtype=torch.float64), torch.tensor([3])
LOW, HIGH = torch.tensor(-128), torch.tensor(127)
TOKEN_SCALES, TOKEN_ZEROS = SCALES.double().unsqueeze(1), ZEROS.unsqueeze(1)
GROUP_SCALES, GROUP_ZEROS = torch.arange(1.0, 19).reshape(6, 3) / 20, (torch.arange(18) % 5).reshape(6, 3).int()
OF_INT8 = (-128, 127, torch.int8)


def _whole(x: torch.Tensor) -> torch.Tensor:
    return q.quantize_per_token.default(x, *q.choose_qparams_per_token_asymmetric.default(x, torch.int8), *OF_INT8)


def quantized_cases() -> Iterator[Case]:
    """The results are equal to eager's, bit for bit."""
    yield Case("quantize", lambda x: q.quantize_per_tensor.default(x, 0.0371, 3, *OF_INT8), (X,))
    yield Case("quantize bf16", lambda x: q.quantize_per_tensor.default(x, 0.0371, 3, *OF_INT8), (X.bfloat16(),))
    yield Case("quantize uint8", lambda x: q.quantize_per_tensor.default(x, 0.04, 130, 0, 255, torch.uint8), (X,))
    int16 = (-32768, 32767, torch.int16)
    yield Case("quantize int16", lambda x: q.quantize_per_tensor.default(x, 3e-4, 0, *int16), (X,))
    yield Case(
        "quantize tensor",
        lambda x, s, z: q.quantize_per_tensor.tensor(x, s, z, -127, 127, torch.int8),
        (X, SCALE, ZERO),
    )
    bounds = (X, SCALE, ZERO, LOW, HIGH)
    yield Case("quantize tensor2", lambda *a: q.quantize_per_tensor.tensor2(*a, torch.int8), bounds)
    yield Case(
        "quantize channel", lambda x, s, z: q.quantize_per_channel.default(x, s, z, 0, *OF_INT8), (X, SCALES, ZEROS)
    )
    yield Case("choose", lambda x: q.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8), (X,))
    yield Case("choose of one sign", lambda x: q.choose_qparams.tensor(x.abs(), 0, 255, 1e-6, torch.uint8), (X,))
    yield Case("choose of zeros", lambda x: q.choose_qparams.tensor(x * 0, 0, 255, 1e-6, torch.uint8), (X,))
    for dtype, low, high in ((torch.int8, -127, 127), (torch.uint8, 0, 255)):
        choose = functools.partial(
            lambda x, low, high, dtype: q.choose_qparams_symmetric.tensor(x, low, high, 1e-6, dtype),
            low=low, high=high, dtype=dtype,
        )  # fmt: skip
        yield Case(f"choose symmetric {dtype}", choose, (X,))
    yield Case("choose token", lambda x: q.choose_qparams_per_token_asymmetric.default(x, torch.int8), (X,))
    yield Case("token", _whole, (X,))
    for out in (None, torch.bfloat16):
        yield Case(
            f"dequantize {out}",
            lambda x, d=out: q.dequantize_per_tensor.default(x, 0.037, 3, *OF_INT8, out_dtype=d),
            (INT8,),
        )
        yield Case(
            f"dequantize tensor {out}",
            lambda x, s, z, d=out: q.dequantize_per_tensor.tensor(x, s, z, *OF_INT8, out_dtype=d),
            (INT8, SCALE, ZERO),
        )
        yield Case(
            f"dequantize channel {out}",
            lambda x, s, z, d=out: q.dequantize_per_channel.default(x, s, z, 0, *OF_INT8, out_dtype=d),
            (INT8, SCALES, ZEROS),
        )
    yield Case(
        "dequantize uint8", lambda x: q.dequantize_per_tensor.default(x, 0.037, 130, 0, 255, torch.uint8), (UINT8,)
    )
    yield Case("dequantize tensor2", lambda *a: q.dequantize_per_tensor.tensor2(*a, torch.int8), (INT8, *bounds[1:]))
    yield Case(
        "dequantize without zeros",
        lambda x, s: q.dequantize_per_channel.default(x, s, None, 1, *OF_INT8),
        (INT8, torch.arange(1.0, 13)),
    )
    token = (INT8, TOKEN_SCALES, TOKEN_ZEROS)
    yield Case("dequantize token", lambda *a: q.dequantize_per_token.default(*a, *OF_INT8, torch.float32), token)
    group = (GROUP_SCALES, GROUP_ZEROS)
    int4 = (-8, 7, torch.int8, 4)
    yield Case("quantize group", lambda *a: q.quantize_per_channel_group.default(*a, *int4), (X, *group))
    yield Case(
        "dequantize group", lambda *a: q.dequantize_per_channel_group.default(*a, *int4, torch.float16), (INT8, *group)
    )
    yield Case("convert", lambda x: q.convert_element_type.no_fuse(x, torch.float16), (X,))
    for m, k, n in ((5, 24, 16), (33, 1300, 24)):
        a, b = (
            (torch.arange(m * k) * 91 % 256 - 128).reshape(m, k),
            (torch.arange(k * n) * 57 % 256 - 128).reshape(k, n),
        )
        yield Case(f"_int_mm {m} {k} {n}", torch._int_mm, (a.to(torch.int8), b.to(torch.int8)))
    least = torch.full((3, 2048), -128, dtype=torch.int8)
    yield Case("_int_mm of the least numbers", torch._int_mm, (least, least.reshape(2048, 3)))
