"""Checkpoints that are quantised already, by AWQ, GPTQ or torchao: their integers become ours, and nothing is rounded.

AWQ and GPTQ store a linear layer [N, K] as ``qweight``, integers of 4 or 8 bits in words of int32, ``qzeros`` and
``scales`` [K / group, N]: a weight is scale * (integer - zero). GPTQ packs along K; AWQ along N, in its own order.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from etcuda.errors import CheckpointError
from etcuda.llm.checkpoint import SafetensorsFolder

_METHODS = ("awq", "gptq", "mxfp4", "torchao")
# Of a word of AWQ, which of the eight rows each nibble is of, from the lowest nibble on.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_INSTEAD = "Export the checkpoint that it was made of, with --quant."


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a checkpoint is quantised.

    Attributes:
        method: ``"awq"``, ``"gptq"``, ``"mxfp4"`` (experts alone, of GPT-OSS) or ``"torchao"``.
        bits: of an integer of AWQ and GPTQ.
        added_to_zero: 1 for GPTQ's first format, which stores zero points less one.
        group_size: weights of a row that share a scale, as the configuration says; -1 for the whole row.
    """

    method: str
    bits: int = 4
    added_to_zero: int = 0
    group_size: int = -1

    def stored_bytes(self, n: int, k: int) -> int:
        """Bytes of a linear layer [n, k] of AWQ or GPTQ as etcuda stores it: with zero points, or minima of 8 bits."""
        groups = 1 if self.group_size <= 0 else k // self.group_size
        return n * (k * self.bits // 8 + groups * (3 if self.bits == 4 else 4))


def read_scheme(folder: pathlib.Path) -> Scheme | None:
    """How a checkpoint is quantised, as its ``config.json`` says; ``None`` if it is not.

    Raises:
        CheckpointError: in a way that is not served.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text_config = config.get("text_config")
    found = config.get("quantization_config") or (text_config or {}).get("quantization_config")
    # What compressed-tensors wrote once.
    found = found or config.get("compression_config")
    if not found:
        return None
    method = str(found.get("quant_method", "")).lower()
    if method not in _METHODS:
        raise CheckpointError(
            f"{path}: quant_method: expected {', '.join(_METHODS)}, or none, got {found.get('quant_method')!r}. "
            f"{_INSTEAD}"
        )
    if method in ("mxfp4", "torchao"):
        return Scheme(method)
    return _awq(found, path) if method == "awq" else _gptq(found, path)


def _awq(found: Mapping[str, Any], path: pathlib.Path) -> Scheme:
    bits = found.get("bits", found.get("w_bit", 4))
    layout = str(found.get("version", found.get("format", "gemm"))).lower()
    if bits != 4 or layout != "gemm":
        raise CheckpointError(
            f"{path}: expected AWQ with 4 bits in the layout 'gemm', got {bits!r} bits and {layout!r}. {_INSTEAD}"
        )
    return Scheme("awq", group_size=_group_size(found, path))


def _gptq(found: Mapping[str, Any], path: pathlib.Path) -> Scheme:
    bits = found.get("bits", 4)
    layout = str(found.get("checkpoint_format", found.get("format", "gptq"))).lower()
    dynamic = found.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(rule, dict) for rule in dynamic.values()):
        raise CheckpointError(
            f"{path}: dynamic: expected an object with an object for each name, got {dynamic!r}. {_INSTEAD}"
        )
    others = {name: rule["bits"] for name, rule in dynamic.items() if rule.get("bits", bits) != bits}
    if bits not in (4, 8) or layout not in ("gptq", "gptq_v2") or others:
        raise CheckpointError(
            f"{path}: expected GPTQ with 4 or 8 bits for all layers, in the format 'gptq' or 'gptq_v2', got {bits!r} "
            f"bits{f', others for {others},' if others else ''} and {layout!r}. {_INSTEAD}"
        )
    return Scheme("gptq", int(bits), 0 if layout == "gptq_v2" else 1, _group_size(found, path))


def _group_size(found: Mapping[str, Any], path: pathlib.Path) -> int:
    given = found.get("group_size", found.get("q_group_size"))
    if given is None:
        return -1
    if type(given) is not int or (given < 1 and given != -1):
        raise CheckpointError(
            f"{path}: group_size: expected 1 or more, or -1 for whole rows, got {given!r}. {_INSTEAD}"
        )
    return given


class QuantizedFolder:
    """The weights of a quantised checkpoint: those that are quantised as our tensors, the others as they are.

    Args:
        folder: its safetensors files.
        scheme: of ``read_scheme``.
        dtype: of the values that quantised weights stand for.
        activation_dtype: of products with them, ``"int8"`` or ``"exact"``.

    Raises:
        CheckpointError: parts of a weight are missing.
    """

    def __init__(self, folder: SafetensorsFolder, scheme: Scheme, dtype: torch.dtype, activation_dtype: str) -> None:
        self._folder, self._scheme = folder, scheme
        self._dtype, self._activation_dtype = dtype, activation_dtype
        self._metadata = folder.metadata() if scheme.method == "torchao" else {}
        self._parts = self._torchao_parts() if scheme.method == "torchao" else self._packed_parts()
        taken = {name for parts in self._parts.values() for name in parts.values()}
        self._names = [*(name for name in folder.names() if name not in taken), *self._parts]

    def names(self) -> list[str]:
        """Names of all tensors, a weight that is stored in parts being one."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if name not in self._parts:
            return self._folder.shape(name)
        if self._scheme.method == "torchao":
            return tuple(self._torchao(name).shape)
        first, second = self._folder.shape(self._parts[name]["qweight"])
        in_word = 32 // self._scheme.bits
        return (second * in_word, first) if self._scheme.method == "awq" else (second, first * in_word)

    def read(self, name: str) -> Tensor:
        """A tensor; a quantised one of ours, with the integers, scales and zero points of the checkpoint.

        Raises:
            CheckpointError: the parts of a weight do not fit together, or its groups are permuted.
            WeightFormatError: no layout of ours holds it.
        """
        # Here, for it brings torchao with it.
        from etcuda.kernels.weights.convert import from_affine, from_torchao

        made: Tensor
        if name not in self._parts:
            made = self._folder.read(name)
        elif self._scheme.method == "torchao":
            made = from_torchao(self._torchao(name), name, activation_dtype=self._activation_dtype)
        else:
            made = from_affine(self._affine(name), name, activation_dtype=self._activation_dtype)
        return made

    def _packed_parts(self) -> dict[str, dict[str, str]]:
        given = set(self._folder.names())
        found = {}
        for name in sorted(given):
            module, _, last = name.rpartition(".")
            if last != "qweight":
                continue
            parts = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
            missing = [each for part, each in parts.items() if each not in given and part != "g_idx"]
            if missing:
                raise CheckpointError(
                    f"{module}: expected qweight, qzeros and scales, got none of the name {', '.join(missing)}. "
                    "Copy the checkpoint again."
                )
            found[f"{module}.weight"] = {part: each for part, each in parts.items() if each in given}
        return found

    def _affine(self, name: str) -> Any:
        from etcuda.kernels.weights.convert import Affine

        parts = {part: self._folder.read(each) for part, each in self._parts[name].items()}
        bits, is_awq = self._scheme.bits, self._scheme.method == "awq"
        n, k = self.shape(name)
        groups = parts["scales"].shape[0]
        words = n * bits // 32
        wanted = {"scales": (groups, n), "qzeros": (groups, words)}
        wrong = [
            f"{part} {list(shape)}, got {list(parts[part].shape)}"
            for part, shape in wanted.items()
            if tuple(parts[part].shape) != shape
        ]
        if wrong or groups == 0 or k % groups:
            raise CheckpointError(
                f"{name}: expected, for a weight [{n}, {k}] in whole groups, {'; '.join(wrong) or f'{groups} groups'}. "
                "Check that config.json belongs to these weights."
            )
        if "g_idx" in parts:
            _check_order(parts["g_idx"], k // groups, name)
        # Rows in order, for they are read some at a time.
        packed = parts["qweight"].t().contiguous()

        def integers(start: int, stop: int) -> Tensor:
            if not is_awq:
                return unpack(packed[start:stop], bits)
            first = start // 8
            words = unpack(packed[first : -(-stop // 8)].t(), 4, _AWQ_ORDER)
            return words.t()[start - first * 8 : stop - first * 8]

        zero = unpack(parts["qzeros"], bits, _AWQ_ORDER if is_awq else None) + self._scheme.added_to_zero
        zero = zero & ((1 << bits) - 1)
        scale = parts["scales"].t().contiguous()
        return Affine((n, k), integers, 0, (1 << bits) - 1, scale, zero.t().contiguous(), None, self._dtype)

    def _torchao_parts(self) -> dict[str, dict[str, str]]:
        given = set(self._folder.names())
        found = {}
        for name, record in self._metadata.items():
            if name == "tensor_names":
                continue
            parts = _torchao_record(record).get("_tensor_data_names")
            if not parts:
                continue
            module, _, last = name.rpartition(".")
            found[name] = {part: f"{module}._{last}_{part}" for part in parts}
            missing = sorted(set(found[name].values()) - given)
            if missing:
                raise CheckpointError(
                    f"{name}: expected the tensors of its metadata, got none of the name {', '.join(missing)}. "
                    "Copy the checkpoint again."
                )
        return found

    def _torchao(self, name: str) -> Any:
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        data = {each: self._folder.read(each) for each in self._parts[name].values()}
        try:
            made, _ = unflatten_tensor_state_dict(
                data, {"tensor_names": json.dumps([name]), name: self._metadata[name]}
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{name}: expected a tensor that this release of torchao reads, got: {type(error).__name__}: {error}. "
                f"{_INSTEAD}"
            ) from error
        return made[name]


def _torchao_record(record: str) -> dict[str, Any]:
    try:
        made = json.loads(record)
    except ValueError:
        # Other words of the file's writer, such as {"format": "pt"}.
        return {}
    return made if isinstance(made, dict) else {}


def unpack(words: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Unsigned integers in words of 32 bits, int32 [..., n], as int32 [..., n * 32 / bits].

    Args:
        words: the lowest bits are the first integer.
        bits: of an integer.
        order: the places of a word's integers, from the lowest bits on; ``None`` for their order.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    made = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    if order is not None:
        places = torch.tensor(order).argsort()
        made = made[..., places]
    return made.flatten(-2)


def _check_order(g_idx: Tensor, group: int, name: str) -> None:
    wanted = torch.arange(len(g_idx), dtype=g_idx.dtype) // group
    if not torch.equal(g_idx, wanted):
        raise CheckpointError(
            f"{name}: g_idx: expected groups of {group} columns in order, got them permuted, by desc_act. "
            "Quantise with desc_act=False, or export the checkpoint that it was made of, with --quant."
        )
