"""Quantisation of a floating weight: which scales, which offsets, which integers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import DTYPES, MINIMUM, STEP, SYMMETRIC, ZERO_POINT, GroupFormat
from etcuda.kernels.weights.lost_scales import LostRows, lost_groups

SEARCHES = ("minmax", "least_squares")

# Weights that are worked on at a time: what bounds the memory beside the weight and what it is packed into.
CHUNK = {"cpu": 1 << 18}
_CHUNK_ON_DEVICE = 1 << 24
_SHRINKS = (1.0, 0.9, 0.8)
_ROUNDS = 3


def quantize_weight(
    weight: Tensor, weight_format: GroupFormat, search: str = "minmax", name: str = "weight"
) -> dict[str, Tensor]:
    """Quantises a weight, some rows at a time, so that beside the result only a few MiB are needed.

    Args:
        weight: [*, N, K] floating; any strides.
        weight_format: format of the result; int8 formats symmetric.
        search: "minmax": the group's extremes are represented. "least_squares": scale and offset of each group are
            fitted to its weights, from several starting points, for the least squared error.
        name: of the weight, for messages.

    Returns:
        The stored tensors by name, on the device of ``weight``.

    Raises:
        WeightFormatError: the shape or dtype is not one that the format takes, a weight is infinite or NaN, or rows are
            so near to zero that the format does not hold their scales.
    """
    check_weight(weight, weight_format, name)
    if search not in SEARCHES:
        raise WeightFormatError(f"{name}: scale_search: expected 'minmax' or 'least_squares', got {search!r}.")
    components = {
        component: torch.empty(shape, dtype=dtype, device=weight.device)
        for component, (shape, dtype) in weight_format.components(*weight.shape).items()
    }
    for chosen, grouped in _some_rows(weight, weight_format):
        for component, tensor in _quantize_rows(grouped, weight_format, search).items():
            components[component][chosen] = tensor
    weight_format.check_finite(components, name)
    return components


def quantize_rows(rows: Tensor, weight_format: GroupFormat, search: str = "minmax") -> dict[str, Tensor]:
    """As ``quantize_weight`` of floating rows [N, K], all at once, without its checks: the stored tensors by name."""
    grouped = rows.to(torch.float32).reshape(len(rows), -1, weight_format.group_size)
    return _quantize_rows(grouped, weight_format, search)


def check_weight(weight: Tensor, weight_format: GroupFormat, name: str = "weight") -> None:
    """Checks that a floating weight can be quantised.

    Raises:
        WeightFormatError: it cannot; the message has ``name`` and the sizes.
    """
    if type(weight) not in (Tensor, torch.nn.Parameter) or weight.dtype not in DTYPES:
        got = f"a {type(weight).__name__} of {weight.dtype}"
        raise WeightFormatError(
            f"{name}: expected a plain tensor of bfloat16, float16 or float32, got {got}. Is it quantised already?"
        )
    if weight.dim() < 2:
        raise WeightFormatError(f"{name}: expected a weight [*, N, K], got shape {list(weight.shape)}.")
    if weight.device.type == "meta":
        raise WeightFormatError(f"{name}: expected a weight with values, got one on the meta device. Load it first.")
    weight_format.check_size(weight.shape, name)
    if weight_format.offset not in weight_format.quantized_offsets:
        known = " or ".join(map(repr, weight_format.quantized_offsets))
        got = weight_format.offset
        raise WeightFormatError(f"{name}: offset: expected {known} for {weight_format.name}, got {got!r}.")
    lost = LostRows()
    for (*index, rows), grouped in _some_rows(weight.detach(), weight_format):
        # NaN comes through.
        low, high = _extremes(grouped)
        if not bool(torch.isfinite(torch.stack([low, high])).all()):
            raise WeightFormatError(
                f"{name}: expected finite weights, got an infinite one or NaN. Check the checkpoint."
            )
        scale, minimum = _from_range(low, high, weight_format)
        vanished = (scale == 0) & (minimum == 0) & (high != low)
        lost.add(vanished | _is_lost(weight_format, scale, minimum), scale, minimum, rows.start, index=index)
    lost.check(weight_format, name)


def _some_rows(weight: Tensor, weight_format: GroupFormat) -> Iterator[tuple[Any, Tensor]]:
    """Where some rows stand in a weight, and those rows float32 [rows, G, group_size], for all rows."""
    *leading, n, k = weight.shape
    group_size = weight_format.group_size
    rows = max(1, CHUNK.get(weight.device.type, _CHUNK_ON_DEVICE) // k)
    for index in itertools.product(*map(range, leading)):
        for start in range(0, n, rows):
            chosen: Any = (*index, slice(start, start + rows))
            yield chosen, weight[chosen].to(torch.float32).reshape(-1, k // group_size, group_size)


def _is_lost(weight_format: GroupFormat, scale: Tensor, minimum: Tensor) -> Tensor:
    stored = _stored(weight_format, _store(weight_format, scale, minimum))
    return lost_groups(weight_format, scale, minimum, *stored)


def _quantize_rows(w: Tensor, weight_format: GroupFormat, search: str) -> dict[str, Tensor]:
    """Stored tensors of rows ``w`` float32 [rows, G, group_size]."""
    scale, minimum = _from_extremes(w, weight_format)
    if search == "least_squares":
        fitted = _fitted(w, weight_format, scale, minimum)
        # A narrower range may be too narrow for the format.
        lost = _is_lost(weight_format, *fitted)
        scale, minimum = torch.where(lost, scale, fitted[0]), torch.where(lost, minimum, fitted[1])
    components = _store(weight_format, scale, minimum)
    # The integers are chosen for the scales as they are stored.
    q = _integers(w, weight_format, *_stored(weight_format, components))
    components["qdata"] = weight_format.pack(q.to(torch.int16).flatten(1))
    return components


def _from_extremes(w: Tensor, weight_format: GroupFormat) -> tuple[Tensor, Tensor]:
    """Scale and minimum of each group, float32 [rows, G], such that the extremes are represented."""
    return _from_range(*_extremes(w), weight_format)


def _extremes(w: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of the last dimension, as ``torch.aminmax``, which looks at few numbers one by one."""
    low = high = w
    while (size := low.shape[-1]) > 1 and size % 2 == 0:
        low = torch.minimum(low[..., : size // 2], low[..., size // 2 :])
        high = torch.maximum(high[..., : size // 2], high[..., size // 2 :])
    return (low.squeeze(-1), high.squeeze(-1)) if low.shape[-1] == 1 else (low.amin(dim=-1), high.amax(dim=-1))


def _from_range(low: Tensor, high: Tensor, weight_format: GroupFormat) -> tuple[Tensor, Tensor]:
    least, most = weight_format.quantized_integers
    if weight_format.offset != SYMMETRIC:
        if weight_format.offset == ZERO_POINT or weight_format.scale_storage == "codes":
            low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        return (high - low) / (most - least), low
    above, below = most - weight_format.center, weight_format.center - least
    if above == below or weight_format.scale_storage == "codes":
        scale = torch.maximum(high / above, -low / below)
    else:
        # As GGUF's Q4_0: the weight of the greatest magnitude is the least integer, so that the scale may be negative.
        scale = torch.where(high > -low, high, low) / -below
    return scale, -weight_format.center * scale


def _fitted(w: Tensor, weight_format: GroupFormat, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and minimum with the least squared error among some: alternately integers are rounded and scale and
    minimum are fitted to them, as in HQQ (Badri and Shaji, 2023), from narrower ranges too."""
    best = (scale, minimum)
    error = _error(w, weight_format, scale, minimum)
    middle = sum(weight_format.quantized_integers) / 2
    for shrink in _SHRINKS:
        tried = (scale * shrink, minimum + scale * (1 - shrink) * middle)
        for _ in range(_ROUNDS):
            tried = _allowed(weight_format, *_fit_once(w, weight_format, *tried))
            now = _error(w, weight_format, *tried)
            better = now < error
            best = (torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1]))
            error = torch.where(better, now, error)
    return best


def _fit_once(w: Tensor, weight_format: GroupFormat, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    q = _integers(w, weight_format, scale, minimum)
    if weight_format.offset == MINIMUM:
        mean_q, mean_w = q.mean(dim=-1), w.mean(dim=-1)
        centred = q - mean_q.unsqueeze(-1)
        slope = _divide((centred * w).sum(dim=-1), (centred * centred).sum(dim=-1), scale)
        return slope, mean_w - slope * mean_q
    # value = scale * (q - zero): the zero stays, the scale is fitted, and the zero follows it.
    zero = torch.round(_divide(-minimum, scale, torch.zeros_like(scale)))
    shifted = q - zero.unsqueeze(-1)
    fitted = _divide((shifted * w).sum(dim=-1), (shifted * shifted).sum(dim=-1), scale)
    if weight_format.offset == SYMMETRIC:
        return fitted, -weight_format.center * fitted
    return fitted, w.mean(dim=-1) - fitted * q.mean(dim=-1)


def _allowed(weight_format: GroupFormat, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    if weight_format.scale_storage == "codes":
        scale, minimum = scale.clamp(min=0.0), minimum.clamp(max=0.0)
    if weight_format.offset == ZERO_POINT:
        zero = torch.round(_divide(-minimum, scale, torch.zeros_like(scale)))
        zero = zero.clamp(*weight_format.quantized_integers)
        return scale, -zero * scale
    if weight_format.offset == SYMMETRIC:
        return scale, -weight_format.center * scale
    return scale, minimum


def _store(weight_format: GroupFormat, scale: Tensor, minimum: Tensor) -> dict[str, Tensor]:
    """Scales and minima [rows, G] as the format stores them."""
    if weight_format.scale_storage == "codes":
        scale_codes, step = _as_codes(scale, weight_format.group_size)
        components = {"scale": scale_codes, "scale_step": step}
        if weight_format.offset == MINIMUM:
            components["zero"], components["zero_step"] = _as_codes(-minimum, weight_format.group_size)
        return components
    dtype = torch.float32 if weight_format.scale_storage == "fp32" else torch.float16
    components = {"scale": scale.to(dtype)}
    if weight_format.offset == MINIMUM:
        components["zero"] = minimum.to(dtype)
    elif weight_format.offset == ZERO_POINT:
        zero = torch.round(_divide(-minimum, scale, torch.zeros_like(scale)))
        components["zero"] = zero.clamp(*weight_format.quantized_integers).to(torch.uint8)
    return components


def _as_codes(values: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Scales or minima of at least 0 as uint8 codes, and their float16 step per 256 weights."""
    rows, groups = values.shape
    per_step = STEP // group_size
    blocks = values.reshape(rows, groups // per_step, per_step)
    greatest = blocks.amax(dim=-1)
    step = (greatest / 255).to(torch.float16)
    # Where float16 has few digits, a step that was rounded down would cut the greatest off.
    short = step.to(torch.float32) * 255 < greatest * 0.998
    step = torch.where(short, (step.view(torch.int16) + 1).view(torch.float16), step)
    scale_codes = torch.round(_divide(blocks, step.to(torch.float32).unsqueeze(-1), torch.zeros_like(blocks)))
    return scale_codes.clamp(0, 255).to(torch.uint8).reshape(rows, groups), step


def _stored(weight_format: GroupFormat, components: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale and minimum that stored tensors stand for, float32 [rows, G]."""
    scale = weight_format.effective_scale(components["scale"], components.get("scale_step"))
    if weight_format.offset == MINIMUM:
        return scale, weight_format.effective_minimum(components["zero"], components.get("zero_step"))
    shift = components["zero"].to(torch.float32) if weight_format.offset == ZERO_POINT else weight_format.center
    return scale, -shift * scale


def _integers(w: Tensor, weight_format: GroupFormat, scale: Tensor, minimum: Tensor) -> Tensor:
    least, most = weight_format.quantized_integers
    inverse = _divide(torch.ones_like(scale), scale, torch.zeros_like(scale)).unsqueeze(-1)
    return (w - minimum.unsqueeze(-1)).mul_(inverse).round_().clamp_(least, most)


def _error(w: Tensor, weight_format: GroupFormat, scale: Tensor, minimum: Tensor) -> Tensor:
    values = _integers(w, weight_format, scale, minimum) * scale.unsqueeze(-1) + minimum.unsqueeze(-1)
    return (values - w).square().sum(dim=-1)


def _divide(above: Tensor, below: Tensor, otherwise: Tensor) -> Tensor:
    nothing = below == 0
    return torch.where(nothing, otherwise, above / torch.where(nothing, torch.ones_like(below), below))
