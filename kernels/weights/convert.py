"""Weights that torchao quantised, as our types: the integers as they are, scales as exact as asked for.

Served are torchao's ``Int4Tensor`` (plain packing), ``Int4TilePackedTo4dTensor`` (tinygemm), ``Int8Tensor`` and
``IntxUnpackedToInt8Tensor`` of 1 to 8 bits. The others have a packing that belongs to one kernel library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization import Int4Tensor, Int4TilePackedTo4dTensor, Int8Tensor, IntxUnpackedToInt8Tensor
from torchao.utils import TorchAOBaseTensor

from etcuda.errors import WeightFormatError
from etcuda.kernels.formats.base import MINIMUM, SYMMETRIC, ZERO_POINT, GroupFormat
from etcuda.kernels.formats.registry import WeightFormat, formats
from etcuda.kernels.weights.lost_scales import TOLERANCE, LostRows, lost_groups
from etcuda.kernels.weights.renamed import renamed_keyword
from etcuda.kernels.weights.tensor import CoalescedTensor

_CHUNK = 1 << 18  # Weights, or scales, that are worked on at a time.


@dataclasses.dataclass(frozen=True)
class Affine:
    """A weight [N, K] as integers: value = scale * (q - zero_point) + shift.

    Attributes:
        shape: N and K.
        integers: takes a first and a last row; the integers q of the rows between, any integer dtype.
        least: the least integer that there can be.
        most: the greatest.
        scale: floating [N / block rows, K / block columns].
        zero_point: ``None`` for 0, or integers or floats like ``scale``.
        shift: ``None`` for 0, or floats like ``scale``.
        dtype: of the dequantised weight.
    """

    shape: tuple[int, int]
    integers: Callable[[int, int], Tensor]
    least: int
    most: int
    scale: Tensor
    zero_point: Tensor | None
    shift: Tensor | None
    dtype: torch.dtype


@renamed_keyword("activation", "activation_dtype")
def from_torchao(
    tensor: Tensor, name: str = "weight", *, activation_dtype: str | None = None, exact: bool = True
) -> CoalescedTensor:
    """Our type of a weight [N, K] that torchao quantised.

    Args:
        tensor: one of the served types.
        name: of the weight, for messages.
        activation_dtype: "int8" or "exact"; ``None`` as the tensor has it. Ours are quantized per block of 32, not per
            token.
        exact: scales and minima that float16 would round are kept as float32; if false they are rounded, by 1% at most.

    Raises:
        WeightFormatError: the type is not served, or the weight cannot be stored so; the message has ``name``.
    """
    reader = _READERS.get(type(tensor))
    if reader is None:
        known = ", ".join(each.__name__ for each in _READERS)
        raise WeightFormatError(f"{name}: expected one of {known}, got {type(tensor).__name__}.")
    affine, own = reader(tensor, name)
    return from_affine(
        affine, name, activation_dtype=own if activation_dtype is None else activation_dtype, exact=exact
    )


@renamed_keyword("activation", "activation_dtype")
def from_affine(
    affine: Affine, name: str = "weight", *, activation_dtype: str = "exact", exact: bool = True
) -> CoalescedTensor:
    """Our type of a weight given as integers, of the fewest bits that hold them: int4 or int8.

    Raises:
        WeightFormatError: the weight cannot be stored so; the message has ``name``.
    """
    n, k = affine.shape
    rows, columns = affine.scale.shape
    if n < 1 or k < 1 or rows < 1 or columns < 1 or n % rows or k % columns:
        raise WeightFormatError(
            f"{name}: expected scales for whole blocks of a weight [{n}, {k}], got {list(affine.scale.shape)}."
        )
    record = _record(affine, name)
    format_type = record.format_type
    added = _added(affine, format_type)
    group_size = _group_size(format_type, k // columns, k, name)
    weight_format = _format(affine, added, format_type, group_size, exact)
    weight_format.check_size((n, k), name)
    components = {
        component: torch.empty(shape, dtype=dtype, device=affine.scale.device)
        for component, (shape, dtype) in weight_format.components(n, k).items()
    }
    height, repeats = n // rows, (k // columns) // group_size
    lost = LostRows()
    for start, stop in _chunks(rows, columns * height * repeats):
        scales = _scales(affine, added, weight_format, start, stop)
        if not exact:
            _add_lost(lost, affine, added, weight_format, scales, start, stop)
        for component, values in scales.items():
            # A block of several rows, or one that is longer than our groups, is several groups of the same scale.
            spread = values.repeat_interleave(height, dim=0).repeat_interleave(repeats, dim=1)
            components[component][start * height : stop * height] = spread
    lost.check(weight_format, name, "Convert with exact=True, which keeps scales of float32")
    for start, stop in _chunks(n, k):
        components["qdata"][start:stop] = format_type.pack(affine.integers(start, stop).to(torch.int16) + added)
    made: CoalescedTensor = record.tensor_type.from_components(
        components, group_size, activation_dtype, affine.dtype, name
    )
    return made


@renamed_keyword("activation", "activation_dtype")
def convert_model(model: nn.Module, *, activation_dtype: str | None = None, exact: bool = True) -> list[str]:
    """Replaces the weights of linear layers and embeddings that torchao quantised by our types, in place; a weight that
    several modules share stays shared.

    Returns:
        Names of the replaced weights.

    Raises:
        WeightFormatError: naming a weight of a type that is not served. Those before it are replaced already.
    """
    made: dict[int, nn.Parameter] = {}
    names = []
    for name, module in _quantized(model):
        old = module.weight
        if id(old) not in made:
            tensor = from_torchao(old, name, activation_dtype=activation_dtype, exact=exact)
            made[id(old)] = nn.Parameter(tensor, requires_grad=False)
        names.append(name)
        module.weight = made[id(old)]
    return names


def _quantized(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        ours = isinstance(weight, CoalescedTensor)
        if isinstance(module, nn.Linear | nn.Embedding) and isinstance(weight, TorchAOBaseTensor) and not ours:
            yield f"{name}.weight" if name else "weight", module


def _record(affine: Affine, name: str) -> WeightFormat:
    """The format of the fewest bits that holds the integers, among those that kernels serve."""
    served = [record for record in formats() if record.kernels and record.format_type.is_affine()]
    for record in served:
        if affine.most - affine.least < 1 << record.bits:
            return record
    raise WeightFormatError(
        f"{name}: expected integers of at most {served[-1].bits} bits, got {affine.least} to {affine.most}."
    )


def _added(affine: Affine, format_type: type[GroupFormat]) -> int:
    """What is added to an integer to store it: to signed ones where ours have no sign, and the other way round."""
    least, most = format_type.integers
    return format_type.center if affine.least < least else least if affine.most > most else 0


def _group_size(format_type: type[GroupFormat], block: int, k: int, name: str) -> int:
    if format_type.whole_rows and block == k:
        return k
    fitting = [size for size in format_type.group_sizes if block % size == 0]
    if not fitting:
        known = ", ".join(map(str, format_type.group_sizes))
        raise WeightFormatError(f"{name}: expected groups that are a multiple of one of {known}, got {block}.")
    return max(fitting)


def _format(affine: Affine, added: int, format_type: type[GroupFormat], group_size: int, exact: bool) -> GroupFormat:
    """The smallest format that holds the scales and offsets, exactly if asked for."""
    centred = whole = affine.shift is None
    halves = True
    for start, stop in _chunks(*affine.scale.shape):
        zero = _zero(affine, added, start, stop)
        centred = centred and bool((zero == format_type.center).all())
        whole = whole and bool((zero == zero.round()).all()) and bool(zero.min() >= 0) and bool(zero.max() <= 255)
        halves = halves and _is_half(affine.scale[start:stop])
    offset = SYMMETRIC if centred else ZERO_POINT if whole and ZERO_POINT in format_type.offsets else MINIMUM
    if offset == MINIMUM and exact and halves:
        pieces = (_minimum(affine, added, start, stop) for start, stop in _chunks(*affine.scale.shape))
        halves = all(_is_half(piece) for piece in pieces)
    return format_type(group_size, "fp16" if halves or not exact else "fp32", offset)


def _scales(affine: Affine, added: int, weight_format: GroupFormat, start: int, stop: int) -> dict[str, Tensor]:
    """Scale and offset of some rows of blocks, for integers that ``added`` was added to."""
    dtype = torch.float16 if weight_format.scale_storage == "fp16" else torch.float32
    components = {"scale": affine.scale[start:stop].to(dtype)}
    if weight_format.offset == ZERO_POINT:
        components["zero"] = _zero(affine, added, start, stop).to(torch.uint8)
    elif weight_format.offset == MINIMUM:
        components["zero"] = _minimum(affine, added, start, stop).to(dtype)
    return components


def _add_lost(
    lost: LostRows,
    affine: Affine,
    added: int,
    weight_format: GroupFormat,
    stored: dict[str, Tensor],
    start: int,
    stop: int,
) -> None:
    """Adds rows of blocks whose scales float16 does not hold, but for those of which all weights are zero."""
    scale, minimum = affine.scale[start:stop].to(torch.float32), _minimum(affine, added, start, stop).to(torch.float32)
    held = stored["scale"].to(torch.float32)
    held_minimum = stored["zero"].to(torch.float32) if weight_format.offset == MINIMUM else minimum
    found = lost_groups(weight_format, scale, minimum, held, held_minimum)
    height, width = affine.shape[0] // affine.scale.shape[0], affine.shape[1] // affine.scale.shape[1]
    for row in torch.nonzero(found.any(dim=-1)).flatten().tolist():
        first = (start + row) * height
        q = affine.integers(first, first + height).to(torch.float32) + added
        values = q.reshape(height, -1, width) * scale[row].unsqueeze(-1) + minimum[row].unsqueeze(-1)
        found[row] &= (values.abs().amax(dim=(0, 2)) > TOLERANCE * scale[row].abs()).to(found.device)
    lost.add(found, scale, minimum, start * height, height)


def _zero(affine: Affine, added: int, start: int, stop: int) -> Tensor:
    if affine.zero_point is None:
        return torch.full_like(affine.scale[start:stop], float(added), dtype=torch.float32)
    return affine.zero_point[start:stop].to(torch.float32) + added


def _minimum(affine: Affine, added: int, start: int, stop: int) -> Tensor:
    # In float64, for it is rounded once more to what is stored.
    minimum = -_zero(affine, added, start, stop).double() * affine.scale[start:stop].double()
    return minimum if affine.shift is None else minimum + affine.shift[start:stop].double()


def _is_half(values: Tensor) -> bool:
    return bool((values.to(torch.float16).to(values.dtype) == values).all())


def _chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold a bounded number of values."""
    step = max(1, _CHUNK // columns)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _read_int4(tensor: Any, name: str) -> tuple[Affine, str]:
    # Two's complement in nibbles, even columns in the low ones; scale and zero point [K / group, N];
    # value = scale * q + zero_point.
    _refuse_scaled_activations(tensor, name)
    n, k = _two_dimensional(tensor, name)

    def integers(start: int, stop: int) -> Tensor:
        packed = tensor.qdata[start:stop].view(torch.uint8)
        nibbles = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2).to(torch.int8)
        return (nibbles ^ 8) - 8

    scale, shift = tensor.scale.t(), tensor.zero_point.t()
    activation_dtype = "exact" if tensor.activation_dtype == torch.bfloat16 else "int8"
    return Affine((n, k), integers, -8, 7, scale, None, shift, tensor.dtype), activation_dtype


def _read_tiles(tensor: Any, name: str) -> tuple[Affine, str]:
    """tinygemm's tiles, int32 [N / 8, K / 128, 32, 4], padded; value = scale * (q - 8) + zero.

    Lane t of a tile has row t / 4 and, in each of four words, nibbles of columns 8 * (b % 4) + 2 * (t % 4) + b / 4 for
    nibble b.
    """
    _refuse_scaled_activations(tensor, name)
    n, k = _two_dimensional(tensor, name)
    tiles = tensor.qdata
    if tiles.dim() != 4 or tiles.shape[2:] != (32, 4) or tiles.shape[0] * 8 < n or tiles.shape[1] * 128 < k:
        raise WeightFormatError(
            f"{name}: qdata: expected tiles [N / 8, K / 128, 32, 4] for a weight [{n}, {k}], got {list(tiles.shape)}."
        )
    shifts = torch.arange(0, 32, 4, device=tiles.device, dtype=torch.int32)

    def integers(start: int, stop: int) -> Tensor:
        chosen = tiles[start // 8 : -(-stop // 8)]
        nibbles = ((chosen.unsqueeze(-1) >> shifts) & 0xF).to(torch.uint8)
        # [tile, tile of columns, row, t % 4, word, b / 4, b % 4]
        nibbles = nibbles.reshape(chosen.shape[0], chosen.shape[1], 8, 4, 4, 2, 4)
        rows: Tensor = nibbles.permute(0, 2, 1, 4, 6, 3, 5).reshape(chosen.shape[0] * 8, -1)
        first = start // 8 * 8
        return rows[start - first : stop - first, :k]

    group = tensor.block_size[-1]
    if k % group:
        raise WeightFormatError(f"{name}: expected K to be a multiple of the group, {group}, got K = {k}.")
    scale, zero = (each[: k // group, :n].t() for each in tensor.scale_and_zero.unbind(-1))
    return Affine((n, k), integers, 0, 15, scale, torch.full_like(scale, 8), zero, tensor.dtype), "exact"


def _read_int8(tensor: Any, name: str) -> tuple[Affine, str]:
    _refuse_scaled_activations(tensor, name)
    if tensor.act_quant_scale is not None:
        raise WeightFormatError(
            f"{name}: expected activations quantised when they are met, got a static scale. Quantise without it."
        )
    shape = _two_dimensional(tensor, name)
    activation_dtype = "exact" if tensor.act_quant_kwargs is None else "int8"
    rows, columns = (size // block for size, block in zip(shape, tensor.block_size, strict=True))
    scale, zero = tensor.scale.reshape(rows, columns), tensor.zero_point
    zero = None if zero is None else zero.reshape(rows, columns)
    return Affine(shape, lambda a, b: tensor.qdata[a:b], -128, 127, scale, zero, None, tensor.dtype), activation_dtype


def _read_intx(tensor: Any, name: str) -> tuple[Affine, str]:
    bits = int(str(tensor.target_dtype).removeprefix("torch.int"))
    shape = _two_dimensional(tensor, name)
    activation_dtype = "exact" if tensor.activation_quantization is None else "int8"
    most = (1 << (bits - 1)) - 1
    return Affine(
        shape, lambda a, b: tensor.qdata[a:b], -most - 1, most, tensor.scale, tensor.zero_point, None, tensor.dtype
    ), activation_dtype


_READERS: dict[type[Any], Callable[[Any, str], tuple[Affine, str]]] = {
    Int4Tensor: _read_int4,
    Int4TilePackedTo4dTensor: _read_tiles,
    Int8Tensor: _read_int8,
    IntxUnpackedToInt8Tensor: _read_intx,
}


def _two_dimensional(tensor: Tensor, name: str) -> tuple[int, int]:
    if tensor.dim() != 2:
        raise WeightFormatError(f"{name}: expected a weight [N, K], got shape {list(tensor.shape)}.")
    return tensor.shape[0], tensor.shape[1]


def _refuse_scaled_activations(tensor: Any, name: str) -> None:
    if tensor.act_pre_scale is not None:
        raise WeightFormatError(
            f"{name}: act_pre_scale: expected None, got a scale of activations. Fold it into the layer before."
        )
