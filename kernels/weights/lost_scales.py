"""Scales and minima that are too small for how they are stored, so that a group's weights would be lost.

float16 has numbers down to 2^-24, and below 2^-14 only multiples of that: near-zero rows would become zero, or be off
by more than their integers are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import MINIMUM, STEP, GroupFormat

# Greatest relative error of a stored scale; float16 rounds by 0.05% at most where it has all its digits.
TOLERANCE = 0.01
_LISTED = 8


def lost_groups(
    weight_format: GroupFormat, scale: Tensor, minimum: Tensor, stored_scale: Tensor, stored_minimum: Tensor
) -> Tensor:
    """Groups, bool [rows, G], whose weights ``stored_scale`` and ``stored_minimum`` do not hold.

    Args:
        weight_format: as which they are stored.
        scale: what was to be stored, float [rows, G].
        minimum: value of the integer 0, float [rows, G].
        stored_scale: the scale that the stored tensors stand for, finite or not.
        stored_minimum: the minimum that they stand for.
    """
    # What a scale may be off by: codes are steps of the greatest scale beside it, whatever its own size.
    codes = weight_format.scale_storage == "codes"
    off = (stored_scale - scale).abs()
    lost = off > TOLERANCE * (_greatest(weight_format, scale) if codes else scale.abs())
    if codes:
        lost |= (stored_scale == 0) & (scale != 0)
    # 1 / scale must be finite. In float32 that is the only bound.
    lost |= (stored_scale != 0) & (stored_scale.abs() < torch.finfo(torch.float32).tiny)
    if weight_format.offset == MINIMUM:
        least, most = weight_format.quantized_integers
        levels = most - least
        magnitude = torch.maximum(minimum.abs(), (minimum + levels * scale).abs())
        # A spread that is small beside the values may go.
        lost &= levels * off > TOLERANCE * magnitude
        off = (stored_minimum - minimum).abs()
        small = off > TOLERANCE * (_greatest(weight_format, minimum) if codes else magnitude)
        # Less than half a step is what integers round away too.
        lost |= (small | ((stored_minimum == 0) & (minimum != 0))) & (off > scale.abs() / 2)
    # Scales that are too great have a check of their own.
    return lost & torch.isfinite(stored_scale) & torch.isfinite(stored_minimum)


class LostRows:
    """Collects the rows of lost groups, some rows of a weight at a time."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._count = 0
        self._example = 0.0

    def add(
        self,
        lost: Tensor,
        scale: Tensor,
        minimum: Tensor,
        first_row: int,
        height: int = 1,
        index: Sequence[int] = (),
    ) -> None:
        """Adds groups.

        Args:
            lost: bool [rows, G].
            scale: float [rows, G].
            minimum: float [rows, G].
            first_row: of the weight, the row of the first.
            height: rows of the weight for each of these.
            index: of the matrix that they are rows of, in a weight that has several.
        """
        found = torch.nonzero(lost)
        if len(found) == 0:
            return
        if not self._rows:
            place = tuple(found[0].tolist())
            self._example = float(scale[place]) or float(minimum[place])
        rows = torch.unique(found[:, 0])
        self._count += len(rows) * height
        for row in rows[:_LISTED].tolist():
            first = first_row + row * height
            self._rows += [_place(index, each) for each in range(first, first + min(height, _LISTED))]

    def check(
        self, weight_format: GroupFormat, name: str, remedy: str = 'Use scale_storage="fp32" (scales of float32)'
    ) -> None:
        """Ends the collection.

        Args:
            weight_format: as which the weight is stored.
            name: of the weight, for the message.
            remedy: what to do, for the message, if scales of float32 would do.

        Raises:
            WeightFormatError: there are lost groups; the message has ``name`` and the rows.
        """
        if not self._rows:
            return
        listed = ", ".join(self._rows[:_LISTED])
        more = f" and {self._count - _LISTED} more" if self._count > _LISTED else ""
        rows = f"row {listed}" if self._count == 1 else f"rows {listed}{more}"
        holds = {
            "fp16": "scales that float16 holds to 1%",
            "codes": "scales that a byte holds beside the others of 256 weights, and steps that float16 holds to 1%",
            "fp32": "weights that float32 holds with all digits",
        }[weight_format.scale_storage]
        what = "Set" if weight_format.scale_storage == "fp32" else f"{remedy}, or set"
        raise WeightFormatError(
            f"{name}: {rows}: expected {holds}, got {self._example:.3g}: weights so near to zero would be lost. "
            f"{what} these rows to zero if they mean nothing."
        )


def _place(index: Sequence[int], row: int) -> str:
    return str([*index, row]) if index else str(row)


def _greatest(weight_format: GroupFormat, values: Tensor) -> Tensor:
    """The greatest magnitude of each 256 weights, for each of their groups."""
    blocks = values.abs().reshape(*values.shape[:-1], -1, STEP // weight_format.group_size)
    return blocks.amax(dim=-1, keepdim=True).expand(blocks.shape).flatten(-2)
