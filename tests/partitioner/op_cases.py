"""Single-operator graphs: the operators that a model meets, with the arguments on which support depends."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class OpCase:
    name: str
    call: Callable[..., Any]
    inputs: tuple[torch.Tensor, ...]


def _f(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape).div(100).to(dtype)


def _i(*shape: int, below: int = 3) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % below


X = _f(3, 5)
Y = _f(3, 5) + 1
B = X > 0.05
N = _i(3, 5)
IMG = _f(2, 4, 9, 9)
VOL = _f(1, 2, 5, 6, 7)
SEQ = _f(2, 4, 11)

UNARY = (
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "clone", "cos", "cosh", "erf", "erfinv",
    "exp", "expm1", "floor", "gelu", "hardsigmoid", "hardswish", "hardtanh", "isinf", "isnan", "leaky_relu",
    "log", "log10", "log1p", "log2", "log_sigmoid_forward", "logical_not", "mish", "neg", "reciprocal", "relu",
    "round", "rsqrt", "sigmoid", "sign", "silu", "sin", "sinh", "softplus", "sqrt", "square", "tan", "tanh",
    "trunc", "elu", "selu", "celu", "frac", "lgamma", "digamma", "special_i0", "erfc", "exp2", "signbit",
    "isfinite", "sgn", "positive", "nan_to_num",
)  # fmt: skip
BINARY = (
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "atan2", "fmod.Tensor", "remainder.Tensor",
    "maximum", "minimum", "pow.Tensor_Tensor", "eq.Tensor", "ne.Tensor", "lt.Tensor", "le.Tensor", "gt.Tensor",
    "ge.Tensor", "logical_and", "logical_or", "logical_xor", "floor_divide", "copysign.Tensor", "hypot", "fmax",
    "fmin", "nextafter", "where.self",
)  # fmt: skip
INTEGER = (
    "bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_xor.Tensor", "remainder.Tensor", "floor_divide",
)  # fmt: skip


def _op(name: str) -> torch._ops.OpOverload:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")  # type: ignore[no-any-return]


def _reduce(op: Callable[..., Any], dim: Any, x: torch.Tensor) -> Any:
    return op(x, dim)


def cases() -> list[OpCase]:
    found: list[OpCase] = []

    def case(name: str, call: Callable[..., Any], *inputs: torch.Tensor) -> None:
        found.append(OpCase(name, call, inputs))

    for name in UNARY:
        case(name, _op(name), X)
    for name in BINARY:
        case(name, _op(name), *((B, X, Y) if name == "where.self" else (X, Y)))
    for name in INTEGER:
        case(f"int64 {name}", _op(name), N, N + 1)
    case("bitwise_not", aten.bitwise_not.default, N)
    case("bitwise_left_shift", aten.bitwise_left_shift.Tensor, N, N)
    case("int64 floor_divide by 3", lambda n: aten.div.Tensor_mode(n, 3, rounding_mode="floor"), N)
    case("int64 remainder by 3", lambda n: aten.remainder.Scalar(n, 3), N)
    case("div trunc", lambda x: aten.div.Tensor_mode(x, 2.0, rounding_mode="trunc"), X)
    case("pow.Tensor_Scalar 2", lambda x: aten.pow.Tensor_Scalar(x, 2), X)
    case("pow.Tensor_Scalar 0.3", lambda x: aten.pow.Tensor_Scalar(x, 0.3), X)
    case("pow.Tensor_Scalar 2000", lambda x: aten.pow.Tensor_Scalar(x, 2000), X)
    case("int64 pow.Tensor_Scalar 2", lambda x: aten.pow.Tensor_Scalar(x, 2), N)
    case("int64 pow.Tensor_Tensor", aten.pow.Tensor_Tensor, N, N)
    case("int64 pow.Scalar", lambda x: aten.pow.Scalar(2, x), N)
    case("pow.Scalar", lambda x: aten.pow.Scalar(2, x), X)
    case("clamp", lambda x: aten.clamp.default(x, 0.1, None), X)
    case("clamp.Tensor", aten.clamp.Tensor, X, Y, Y)
    case("to fp16", lambda x: aten._to_copy.default(x, dtype=torch.float16), X)
    case("to int8", lambda x: aten._to_copy.default(x, dtype=torch.int8), X)
    case("to bool", lambda x: aten._to_copy.default(x, dtype=torch.bool), X)
    case("addcmul", lambda x, y: aten.addcmul.default(x, y, y, value=0.5), X, Y)
    case("lerp", lambda x, y: aten.lerp.Scalar(x, y, 0.3), X, Y)
    case("masked_fill", lambda x, b: aten.masked_fill.Scalar(x, b, -1.0), X, B)
    case("native_dropout eval", lambda x: aten.native_dropout.default(x, 0.5, False)[0], X)
    case("native_dropout train", lambda x: aten.native_dropout.default(x, 0.5, True)[0], X)
    case("bernoulli", lambda x: aten.bernoulli.default(x), X / 100)
    case("rand", lambda x: aten.rand.default([3, 5]) + x, X)
    case("rand_like", lambda x: aten.rand_like.default(x), X)
    case("randn", lambda x: aten.randn.default([3, 5]) + x, X)
    case("randint", lambda x: aten.randint.low(0, 9, [3, 5]) + x, X)
    case("randperm", lambda x: aten.randperm.default(5) + x, X)
    case("multinomial", lambda x: aten.multinomial.default(x, 1), X)
    # reductions
    for name in ("sum.dim_IntList", "mean.dim", "amax", "amin", "any.dim", "var.correction", "argmax", "argmin"):
        dim: Any = 1 if name in ("any.dim", "argmax", "argmin") else [1]
        case(name, functools.partial(_reduce, _op(name), dim), X)
    for name in ("sum", "mean", "any", "prod", "max", "min", "all"):
        case(f"{name} of all", _op(name), X)
    case("sum of all, 2000 elements", aten.sum.default, _f(40, 50))
    case("prod.dim_int", lambda x: aten.prod.dim_int(x, 1), X)
    case("max.dim", lambda x: aten.max.dim(x, 1), X)
    case("min.dim", lambda x: aten.min.dim(x, 1), X)
    case("logsumexp", lambda x: aten.logsumexp.default(x, [1]), X)
    case("linalg_vector_norm", lambda x: aten.linalg_vector_norm.default(x, 2, [1]), X)
    case("linalg_vector_norm 3", lambda x: aten.linalg_vector_norm.default(x, 3.0, [1]), X)
    case("var.dim", lambda x: aten.var.dim(x, [1]), X)
    case("var_mean", lambda x: aten.var_mean.correction(x, [1], correction=0), X)
    case("_softmax", lambda x: aten._softmax.default(x, 1, False), X)
    case("_softmax half", lambda x: aten._softmax.default(x, 1, False), X.half())
    case("_log_softmax", lambda x: aten._log_softmax.default(x, 1, False), X)
    case("cumsum", lambda x: aten.cumsum.default(x, 1), X)
    case("int64 cumsum", lambda x: aten.cumsum.default(x, 1), N)
    case("bf16 cumsum", lambda x: aten.cumsum.default(x, 1), X.bfloat16())
    case("cumsum of 70000", lambda x: aten.cumsum.default(x, 0), _f(70000))
    case("cumprod", lambda x: aten.cumprod.default(x, 1), X)
    case("cummax", lambda x: aten.cummax.default(x, 1), X)
    case("logcumsumexp", lambda x: aten.logcumsumexp.default(x, 1), X)
    case("sort", lambda x: aten.sort.default(x, 1), X)
    case("sort stable", lambda x: aten.sort.stable(x, stable=True, dim=1), X)
    case("sort of 3000", lambda x: aten.sort.default(x, 0), _f(3000))
    case("argsort", lambda x: aten.argsort.default(x, 1), X)
    case("topk", lambda x: aten.topk.default(x, 2), X)
    case("median.dim", lambda x: aten.median.dim(x, 1), X)
    case("mode", lambda x: aten.mode.default(x, 1), X)
    case("kthvalue", lambda x: aten.kthvalue.default(x, 2, 1), X)
    case("histc", lambda x: aten.histc.default(x, 4), X)
    case("bincount", lambda n: aten.bincount.default(n, None, 0).shape[0] * n, N.flatten())
    case("searchsorted", aten.searchsorted.Tensor, X, Y)
    case("bucketize", lambda x, b: aten.bucketize.Tensor(x, b), X, _f(4))
    # normalisation
    case("native_layer_norm", lambda x: aten.native_layer_norm.default(x, [5], None, None, 1e-5), X)
    case("native_group_norm", lambda x: F.group_norm(x, 2), IMG)
    case("batch_norm", lambda x: F.batch_norm(x, _f(4), _f(4)), IMG)
    case("rms_norm", lambda x: F.rms_norm(x, (5,)), X)
    # matrix products
    case("mm", aten.mm.default, X, _f(5, 4))
    case("mm fp16", aten.mm.default, X.half(), _f(5, 4).half())
    case("mm fp64", aten.mm.default, X.double(), _f(5, 4).double())
    case("int64 mm", aten.mm.default, N, _i(5, 4))
    case("mm, one row", aten.mm.default, _f(1, 5), _f(5, 4))
    case("mm, one column", aten.mm.default, X, _f(5, 1))
    case("addmm", aten.addmm.default, _f(4), X, _f(5, 4))
    case("addmm alpha 2", lambda b, x, y: aten.addmm.default(b, x, y, alpha=2), _f(4), X, _f(5, 4))
    case("bmm", aten.bmm.default, _f(2, 3, 5), _f(2, 5, 4))
    case("baddbmm", aten.baddbmm.default, _f(2, 3, 4), _f(2, 3, 5), _f(2, 5, 4))
    case("mv", aten.mv.default, X, _f(5))
    case("dot", aten.dot.default, _f(5), _f(5))
    case("linear", F.linear, X, _f(4, 5), _f(4))
    case("_int_mm", aten._int_mm.default, torch.ones(32, 32, dtype=torch.int8), torch.ones(32, 32, dtype=torch.int8))
    case("sdpa math", lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), _f(1, 2, 5, 8))
    case("_cdist_forward", lambda x, y: aten._cdist_forward.default(x, y, 2.0, None), X, Y)
    case("_pdist_forward", lambda x: aten._pdist_forward.default(x, 2.0), X)
    # convolution
    w = _f(6, 4, 3, 3)
    case("conv2d", lambda x, w: F.conv2d(x, w, stride=2, padding=1), IMG, w)
    case("conv2d bias", lambda x, w, b: F.conv2d(x, w, b), IMG, w, _f(6))
    case("conv2d 1x1", lambda x, w: F.conv2d(x, w), IMG, _f(6, 4, 1, 1))
    case("conv2d groups", lambda x, w: F.conv2d(x, w, groups=2), IMG, _f(6, 2, 3, 3))
    case("conv2d depthwise", lambda x, w: F.conv2d(x, w, groups=4), IMG, _f(4, 1, 3, 3))
    case("conv1d", lambda x, w: F.conv1d(x, w, padding=1), SEQ, _f(6, 4, 3))
    case("conv3d", lambda x, w: F.conv3d(x, w), VOL, _f(3, 2, 2, 2, 2))
    case("conv_transpose2d", lambda x, w: F.conv_transpose2d(x, w, stride=2), IMG, _f(4, 3, 3, 3))
    # pooling and resampling
    case("max_pool2d 3", lambda x: F.max_pool2d(x, 3, 2, 1), IMG)
    case("max_pool2d 2 with indices", lambda x: aten.max_pool2d_with_indices.default(x, [2, 2]), IMG)
    case("max_pool2d 6", lambda x: F.max_pool2d(x, 6, 1), IMG)
    case("max_pool2d dilated", lambda x: F.max_pool2d(x, 2, 2, dilation=2), IMG)
    case("max_pool1d", lambda x: F.max_pool1d(x, 3), SEQ)
    case("max_pool3d", lambda x: F.max_pool3d(x, 2), VOL)
    case("avg_pool2d 3", lambda x: aten.avg_pool2d.default(x, [3, 3], [2, 2], [1, 1]), IMG)
    case("avg_pool2d 6", lambda x: aten.avg_pool2d.default(x, [6, 6], [1, 1]), IMG)
    case("avg_pool1d", lambda x: aten.avg_pool1d.default(x, [3]), SEQ)
    case("avg_pool3d", lambda x: aten.avg_pool3d.default(x, [2, 2, 2]), VOL)
    case("avg_pool3d 4", lambda x: aten.avg_pool3d.default(x, [4, 4, 4]), VOL)
    case("_adaptive_avg_pool2d to 1", lambda x: aten._adaptive_avg_pool2d.default(x, [1, 1]), IMG)
    case("_adaptive_avg_pool2d to 3", lambda x: aten._adaptive_avg_pool2d.default(x, [3, 3]), IMG)
    case("_adaptive_avg_pool2d to 4", lambda x: aten._adaptive_avg_pool2d.default(x, [4, 4]), IMG)
    case("_adaptive_avg_pool2d 64 to 5", lambda x: aten._adaptive_avg_pool2d.default(x, [5, 5]), _f(1, 1, 64, 64))
    case("_adaptive_avg_pool3d", lambda x: aten._adaptive_avg_pool3d.default(x, [2, 2, 2]), VOL)
    case("adaptive_max_pool2d to 4", lambda x: aten.adaptive_max_pool2d.default(x, [4, 4]), IMG)
    case("adaptive_max_pool2d 64 to 5", lambda x: aten.adaptive_max_pool2d.default(x, [5, 5]), _f(1, 1, 64, 64))
    case(
        "fractional_max_pool2d", lambda x, s: aten.fractional_max_pool2d.default(x, [2, 2], [3, 3], s), IMG, _f(2, 4, 2)
    )
    case("upsample_nearest2d", lambda x: aten.upsample_nearest2d.vec(x, None, [2.0, 2.0]), IMG)
    case("upsample_bilinear2d", lambda x: aten.upsample_bilinear2d.vec(x, None, False, [2.0, 2.0]), IMG)
    case("upsample_bicubic2d", lambda x: aten.upsample_bicubic2d.vec(x, None, False, [2.0, 2.0]), IMG)
    case("_upsample_bilinear2d_aa", lambda x: aten._upsample_bilinear2d_aa.default(x, [5, 5], False), IMG)
    case("grid_sampler_2d", lambda x, g: aten.grid_sampler_2d.default(x, g, 0, 0, False), IMG, _f(2, 3, 3, 2))
    case("grid_sampler_2d bicubic", lambda x, g: aten.grid_sampler_2d.default(x, g, 2, 0, False), IMG, _f(2, 3, 3, 2))
    case("grid_sampler_3d", lambda x, g: aten.grid_sampler_3d.default(x, g, 0, 0, False), VOL, _f(1, 2, 2, 2, 3))
    case("reflection_pad2d", lambda x: aten.reflection_pad2d.default(x, [1, 1, 1, 1]), IMG)
    case("reflection_pad1d", lambda x: aten.reflection_pad1d.default(x, [1, 1]), SEQ)
    case("replication_pad2d", lambda x: aten.replication_pad2d.default(x, [1, 1, 1, 1]), IMG)
    case("constant_pad_nd", lambda x: aten.constant_pad_nd.default(x, [1, 2], 0.5), X)
    case("pixel_shuffle", lambda x: aten.pixel_shuffle.default(x, 2), IMG)
    case("col2im", lambda x: aten.col2im.default(x, [5, 5], [2, 2], [1, 1], [0, 0], [1, 1]), _f(1, 8, 16))
    case("im2col", lambda x: aten.im2col.default(x, [2, 2], [1, 1], [0, 0], [1, 1]), IMG)
    # indexing
    case("embedding", aten.embedding.default, X, N)
    case("_embedding_bag", lambda w, n: aten._embedding_bag.default(w, n.flatten(), n[0])[0], X, N)
    case("gather", lambda x, n: aten.gather.default(x, 1, n), X, N)
    case("index.Tensor", lambda x, n: aten.index.Tensor(x, [n[0]]), X, N)
    case("index.Tensor by mask", lambda x, b: aten.index.Tensor(x, [b]).sum(), X, B)
    case("index_select", lambda x, n: aten.index_select.default(x, 0, n.flatten()), X, N)
    case("index_put", lambda x, n, y: aten.index_put.default(x, [n[0]], y[0]), X, N, Y)
    case("index_put accumulate", lambda x, n, y: aten.index_put.default(x, [n[0]], y[0], True), X, N, Y)
    case(
        "bf16 index_put accumulate",
        lambda x, n, y: aten.index_put.default(x, [n[0]], y[0], True),
        X.bfloat16(),
        N,
        Y.bfloat16(),
    )
    case(
        "fp16 index_put accumulate",
        lambda x, n, y: aten.index_put.default(x, [n[0]], y[0], True),
        X.half(),
        N,
        Y.half(),
    )
    case("int64 index_put accumulate", lambda x, n, y: aten.index_put.default(x, [n[0]], y[0], True), N, N, N)
    case(
        "int8 index_put accumulate",
        lambda x, n, y: aten.index_put.default(x, [n[0]], y[0], True),
        N.char(),
        N,
        N.char(),
    )
    case("bool index_put", lambda x, n, y: aten.index_put.default(x, [n[0]], y[0]), B, N, B)
    case("index_put by mask", lambda x, b, y: aten.index_put.default(x, [b], y[0, 0]), X, B, Y)
    case("index_copy", lambda x, n, y: aten.index_copy.default(x, 0, n[0, :2], y[:2]), X, N, Y)
    case("index_add", lambda x, n, y: aten.index_add.default(x, 0, n[0, :2], y[:2]), X, N, Y)
    case("scatter.src", lambda x, n, y: aten.scatter.src(x, 0, n, y), X, N, Y)
    case("scatter.value", lambda x, n: aten.scatter.value(x, 0, n, 1.0), X, N)
    case("scatter_add", lambda x, n, y: aten.scatter_add.default(x, 0, n, y), X, N, Y)
    case("bf16 scatter_add", lambda x, n, y: aten.scatter_add.default(x, 0, n, y), X.bfloat16(), N, Y.bfloat16())
    case("fp16 scatter_add", lambda x, n, y: aten.scatter_add.default(x, 0, n, y), X.half(), N, Y.half())
    case("int64 scatter_add", lambda x, n, y: aten.scatter_add.default(x, 0, n, y), N, N, N)
    for reduce in ("sum", "prod", "mean", "amax", "amin"):
        case(f"scatter_reduce {reduce}", lambda x, n, y, r=reduce: aten.scatter_reduce.two(x, 0, n, y, r), X, N, Y)
    case(
        "scatter_reduce sum without self",
        lambda x, n, y: aten.scatter_reduce.two(x, 0, n, y, "sum", include_self=False),
        X,
        N,
        Y,
    )
    case("masked_scatter", aten.masked_scatter.default, X, B, Y)
    case("nonzero", lambda x: aten.nonzero.default(x).sum(), X)
    case("item", lambda x, n: x * aten._local_scalar_dense.default(n[0, 0]), X, N)
    case("select_scatter", lambda x, y: aten.select_scatter.default(x, y[0], 0, 1), X, Y)
    case("slice_scatter", lambda x, y: aten.slice_scatter.default(x, y[:1], 0, 1, 2), X, Y)
    case("diagonal_scatter", lambda x, y: aten.diagonal_scatter.default(x, y[0, :3]), X, Y)
    case("one_hot", lambda n: F.one_hot(n, 4), N)
    case("tril", lambda x: aten.tril.default(x), X)
    case("where nested", lambda b, x: aten.where.ScalarOther(b, x, 0.0), B, X)
    # shapes
    case("cat", lambda x, y: aten.cat.default([x, y], 1), X, Y)
    case("int8 cat", lambda x, y: aten.cat.default([x, y], 1), N.char(), N.char())
    case("view as int32", lambda x: aten.view.dtype(x, torch.int32) + 1, X)
    case("view as int16", lambda x: aten.view.dtype(x, torch.int16) + 1, X)
    case("scatter int64", lambda x, n, y: aten.scatter.src(x, 0, n, y), N, N, N)
    case("upsample_nearest2d.default", lambda x: aten.upsample_nearest2d.default(x, [18, 18]), IMG)
    case("cat of 12", lambda x: aten.cat.default([x + k for k in range(12)], 1), X)
    case("stack", lambda x, y: aten.stack.default([x, y]), X, Y)
    case("repeat", lambda x: aten.repeat.default(x, [2, 3]), X)
    case("flip", lambda x: aten.flip.default(x, [0]), X)
    case("roll", lambda x: aten.roll.default(x, [1], [0]), X)
    case("permute", lambda x: aten.permute.default(x, [1, 0]) + 1, X)
    case("view", lambda x: aten.view.default(x, [5, 3]) + 1, X)
    case("expand", lambda x: aten.expand.default(x, [2, 3, 5]) + 1, X)
    case("unfold", lambda x: aten.unfold.default(x, 1, 2, 1) + 1, X)
    case("as_strided", lambda x: aten.as_strided.default(x, [2, 2], [1, 2]) + 1, X)
    case("split", lambda x: [t + 1 for t in aten.split_with_sizes.default(x, [2, 3], 1)], X)
    case("unbind", lambda x: [t + 1 for t in aten.unbind.int(x)], X)
    case("diagonal", lambda x: aten.diagonal.default(x) + 1, X)
    case("arange", lambda x: aten.arange.start_step(0, 5, 1) + x, X)
    case("full", lambda x: aten.full.default([3, 5], 2.0) + x, X)
    case("full_like", lambda x: aten.full_like.default(x, 2.0), X)
    case("scalar_tensor", lambda x: aten.scalar_tensor.default(2.0) + x, X)
    case("eye", lambda x: aten.eye.m(3, 5) + x, X)
    case("linspace", lambda x: aten.linspace.default(0, 1, 5) + x, X)
    case("empty", lambda x: aten.empty.memory_format([3, 5]).fill_(0) + x, X)
    case("repeat_interleave", lambda x: aten.repeat_interleave.self_int(x, 2, 0), X)
    case("copy", lambda x, y: aten.copy.default(x, y), X, Y)
    # not for the delegate
    case("_fft_r2c", lambda x: aten._fft_r2c.default(x, [1], 0, True).real, X)
    case("linalg_inv", lambda x: aten.linalg_inv_ex.default(x)[0], _f(3, 3) + torch.eye(3))
    case("linalg_qr", lambda x: aten.linalg_qr.default(x)[0], _f(3, 3))
    case("lu_unpack", lambda x: aten.lu_unpack.default(x, torch.ones(3, dtype=torch.int32))[1], _f(3, 3))
    return found
