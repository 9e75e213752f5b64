"""Quantisation of a floating weight: which scales, which offsets, which integers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import DTYPES, MINIMUM, STEP, SYMMETRIC, ZERO_POINT, GroupFormat
from etcuda.kernels.weights.lost_scales import LostRows, lost_groups

SEARCHES = ("minmax", "least_squares")

# Weights that are worked on at a time: what bounds the memory beside the weight and its packed form.
CHUNK = {"cpu": 1 << 18}
_CHUNK_ON_DEVICE = 1 << 24
_SHRINKS = (1.0, 0.9, 0.8)
_ROUNDS = 3


def quantize_weight(
    weight: Tensor, form: GroupFormat, search: str = "minmax", name: str = "weight"
) -> dict[str, Tensor]:
    """Quantises a weight, some rows at a time, so that beside the result only a few MiB are needed.

    Args:
        weight: [N, K] floating; any strides.
        form: format of the result; int8 formats symmetric.
        search: "minmax": the group's extremes are represented. "least_squares": scale and offset of each group are
            fitted to its weights, from several starting points, for the least squared error.
        name: of the weight, for messages.

    Returns:
        The stored tensors by name, on the device of ``weight``.

    Raises:
        WeightFormatError: the shape or dtype is not one that the format takes, a weight is infinite or NaN, or rows are
            so near to zero that the format does not hold their scales.
    """
    check_weight(weight, form, name)
    if search not in SEARCHES:
        raise WeightFormatError(f"{name}: scale_search: expected 'minmax' or 'least_squares', got {search!r}.")
    n, k = weight.shape
    parts = {
        part: torch.empty(shape, dtype=dtype, device=weight.device)
        for part, (shape, dtype) in form.components(n, k).items()
    }
    for start, grouped in _some_rows(weight, form):
        for part, tensor in _quantize_rows(grouped, form, search).items():
            parts[part][start : start + len(grouped)] = tensor
    form.check_finite(parts, name)
    return parts


def check_weight(weight: Tensor, form: GroupFormat, name: str = "weight") -> None:
    """Checks that a floating weight can be quantised.

    Raises:
        WeightFormatError: it cannot; the message has ``name`` and the sizes.
    """
    if type(weight) not in (Tensor, torch.nn.Parameter) or weight.dtype not in DTYPES:
        got = f"a {type(weight).__name__} of {weight.dtype}"
        raise WeightFormatError(
            f"{name}: expected a plain tensor of bfloat16, float16 or float32, got {got}. Is it quantised already?"
        )
    if weight.dim() != 2:
        raise WeightFormatError(f"{name}: expected a weight [N, K], got shape {list(weight.shape)}.")
    if weight.device.type == "meta":
        raise WeightFormatError(f"{name}: expected a weight with values, got one on the meta device. Load it first.")
    form.check_size(weight.shape[0], weight.shape[1], name)
    if form.bits == 8 and form.asymmetric:
        raise WeightFormatError(f"{name}: offset: expected 'symmetric' for int8, got {form.offset!r}.")
    lost = LostRows()
    for start, grouped in _some_rows(weight.detach(), form):
        # NaN comes through.
        low, high = torch.aminmax(grouped, dim=-1)
        if not bool(torch.isfinite(torch.stack([low, high])).all()):
            raise WeightFormatError(
                f"{name}: expected finite weights, got an infinite one or NaN. Check the checkpoint."
            )
        scale, minimum = _from_range(low, high, form)
        vanished = (scale == 0) & (minimum == 0) & (high != low)
        lost.add(vanished | _is_lost(form, scale, minimum), scale, minimum, start)
    lost.check(form, name)


def _some_rows(weight: Tensor, form: GroupFormat) -> Iterator[tuple[int, Tensor]]:
    """The first of some rows, and those rows float32 [rows, G, group_size], for all rows of a weight."""
    n, k = weight.shape
    rows = max(1, CHUNK.get(weight.device.type, _CHUNK_ON_DEVICE) // k)
    for start in range(0, n, rows):
        yield start, weight[start : start + rows].to(torch.float32).reshape(-1, k // form.group_size, form.group_size)


def _is_lost(form: GroupFormat, scale: Tensor, minimum: Tensor) -> Tensor:
    return lost_groups(form, scale, minimum, *_stored(form, _store(form, scale, minimum)))


def _quantize_rows(w: Tensor, form: GroupFormat, search: str) -> dict[str, Tensor]:
    """Stored tensors of rows ``w`` float32 [rows, G, group_size]."""
    scale, minimum = _from_extremes(w, form)
    if search == "least_squares":
        fitted = _fitted(w, form, scale, minimum)
        # A narrower range may be too narrow for the format.
        lost = _is_lost(form, *fitted)
        scale, minimum = torch.where(lost, scale, fitted[0]), torch.where(lost, minimum, fitted[1])
    parts = _store(form, scale, minimum)
    # The integers are chosen for the scales as they are stored.
    q = _integers(w, form, *_stored(form, parts))
    parts["qdata"] = form.pack(q.to(torch.int16).flatten(1))
    return parts


def _limits(form: GroupFormat) -> tuple[int, int]:
    # -128 is left out, so that a weight and its negative have the same magnitude.
    return (0, 15) if form.bits == 4 else (-127, 127)


def _from_extremes(w: Tensor, form: GroupFormat) -> tuple[Tensor, Tensor]:
    """Scale and minimum of each group, float32 [rows, G], such that the extremes are represented."""
    return _from_range(*torch.aminmax(w, dim=-1), form)


def _from_range(low: Tensor, high: Tensor, form: GroupFormat) -> tuple[Tensor, Tensor]:
    least, most = _limits(form)
    if form.offset != SYMMETRIC:
        if form.offset == ZERO_POINT or form.scale_storage == "codes":
            low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        return (high - low) / (most - least), low
    if form.bits == 8:
        scale = torch.maximum(high, -low) / most
    elif form.scale_storage == "codes":
        scale = torch.maximum(high / 7, -low / 8)
    else:
        # As GGUF's Q4_0: the weight of the greatest magnitude is -8 steps, so that the scale may be negative.
        scale = torch.where(high > -low, high, low) / -8
    return scale, -form.center * scale


def _fitted(w: Tensor, form: GroupFormat, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and minimum with the least squared error among some: alternately integers are rounded and scale and
    minimum are fitted to them, as in HQQ (Badri and Shaji, 2023), from narrower ranges too."""
    best = (scale, minimum)
    error = _error(w, form, scale, minimum)
    middle = sum(_limits(form)) / 2
    for shrink in _SHRINKS:
        tried = (scale * shrink, minimum + scale * (1 - shrink) * middle)
        for _ in range(_ROUNDS):
            tried = _allowed(form, *_fit_once(w, form, *tried))
            now = _error(w, form, *tried)
            better = now < error
            best = (torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1]))
            error = torch.where(better, now, error)
    return best


def _fit_once(w: Tensor, form: GroupFormat, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    q = _integers(w, form, scale, minimum)
    if form.offset == MINIMUM:
        mean_q, mean_w = q.mean(dim=-1), w.mean(dim=-1)
        centred = q - mean_q.unsqueeze(-1)
        slope = _divide((centred * w).sum(dim=-1), (centred * centred).sum(dim=-1), scale)
        return slope, mean_w - slope * mean_q
    # value = scale * (q - zero): the zero stays, the scale is fitted, and the zero follows it.
    zero = torch.round(_divide(-minimum, scale, torch.zeros_like(scale)))
    shifted = q - zero.unsqueeze(-1)
    fitted = _divide((shifted * w).sum(dim=-1), (shifted * shifted).sum(dim=-1), scale)
    if form.offset == SYMMETRIC:
        return fitted, -form.center * fitted
    return fitted, w.mean(dim=-1) - fitted * q.mean(dim=-1)


def _allowed(form: GroupFormat, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    if form.scale_storage == "codes":
        scale, minimum = scale.clamp(min=0.0), minimum.clamp(max=0.0)
    if form.offset == ZERO_POINT:
        zero = torch.round(_divide(-minimum, scale, torch.zeros_like(scale))).clamp(0, 15)
        return scale, -zero * scale
    if form.offset == SYMMETRIC:
        return scale, -form.center * scale
    return scale, minimum


def _store(form: GroupFormat, scale: Tensor, minimum: Tensor) -> dict[str, Tensor]:
    """Scales and minima [rows, G] as the format stores them."""
    if form.scale_storage == "codes":
        codes, step = _as_codes(scale, form.group_size)
        parts = {"scale": codes, "scale_step": step}
        if form.offset == MINIMUM:
            parts["zero"], parts["zero_step"] = _as_codes(-minimum, form.group_size)
        return parts
    dtype = torch.float32 if form.scale_storage == "fp32" else torch.float16
    parts = {"scale": scale.to(dtype)}
    if form.offset == MINIMUM:
        parts["zero"] = minimum.to(dtype)
    elif form.offset == ZERO_POINT:
        zero = torch.round(_divide(-minimum, scale, torch.zeros_like(scale)))
        parts["zero"] = zero.clamp(0, 15).to(torch.uint8)
    return parts


def _as_codes(values: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Numbers of at least 0 as uint8 codes, and their float16 step per 256 weights."""
    rows, groups = values.shape
    per_step = STEP // group_size
    blocks = values.reshape(rows, groups // per_step, per_step)
    greatest = blocks.amax(dim=-1)
    step = (greatest / 255).to(torch.float16)
    # Where float16 has few digits, a step that was rounded down would cut the greatest off.
    short = step.to(torch.float32) * 255 < greatest * 0.998
    step = torch.where(short, (step.view(torch.int16) + 1).view(torch.float16), step)
    codes = torch.round(_divide(blocks, step.to(torch.float32).unsqueeze(-1), torch.zeros_like(blocks)))
    return codes.clamp(0, 255).to(torch.uint8).reshape(rows, groups), step


def _stored(form: GroupFormat, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale and minimum that stored tensors stand for, float32 [rows, G]."""
    scale = form.effective_scale(parts["scale"], parts.get("scale_step"))
    if form.offset == MINIMUM:
        return scale, form.effective_minimum(parts["zero"], parts.get("zero_step"))
    shift = parts["zero"].to(torch.float32) if form.offset == ZERO_POINT else form.center
    return scale, -shift * scale


def _integers(w: Tensor, form: GroupFormat, scale: Tensor, minimum: Tensor) -> Tensor:
    least, most = _limits(form)
    inverse = _divide(torch.ones_like(scale), scale, torch.zeros_like(scale)).unsqueeze(-1)
    return torch.round((w - minimum.unsqueeze(-1)) * inverse).clamp_(least, most)


def _error(w: Tensor, form: GroupFormat, scale: Tensor, minimum: Tensor) -> Tensor:
    values = _integers(w, form, scale, minimum) * scale.unsqueeze(-1) + minimum.unsqueeze(-1)
    return (values - w).square().sum(dim=-1)


def _divide(above: Tensor, below: Tensor, otherwise: Tensor) -> Tensor:
    nothing = below == 0
    return torch.where(nothing, otherwise, above / torch.where(nothing, torch.ones_like(below), below))
