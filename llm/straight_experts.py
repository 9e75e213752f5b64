"""Checkpoints whose experts are transposed, interleaved or MXFP4, as those of GPT-OSS, read as the model has them.

Of MXFP4 transformers stores ``gate_up_proj_blocks`` uint8 [experts, rows, K / 32, 16], two numbers a byte, the first in
the lower bits, and ``gate_up_proj_scales`` uint8 [experts, rows, K / 32], exponents plus 127.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from etcuda.errors import CheckpointError, WeightFormatError
from etcuda.kernels.weights.gguf_blocks import from_mxfp4
from etcuda.kernels.weights.int8_tensor import Int8CoalescedTensor
from etcuda.llm.checkpoint import Weights
from etcuda.llm.experts import Layout

_BLOCK = 32  # Numbers that share a power of two.
_NAME = re.compile(r"(.+\.experts\.(gate_up_proj|down_proj))(_bias|_blocks|_scales)?")


class StraightExperts:
    """Weights whose experts are [experts, rows, columns], the rows of the gate first; those of MXFP4 are int8 in groups
    of 32, the same numbers.

    Args:
        weights: of a checkpoint.
        layout: how it has the experts' matrices. Those of MXFP4 are [experts, rows, columns] whatever it says.
        dtype: of the values that quantised weights stand for.
        activation_dtype: of products with them, ``"int8"`` or ``"exact"``.

    Raises:
        CheckpointError: of blocks and scales there is one without the other.
    """

    def __init__(self, weights: Weights, layout: Layout, dtype: torch.dtype, activation_dtype: str) -> None:
        self._weights, self._layout = weights, layout
        self._dtype, self._activation_dtype = dtype, activation_dtype
        self._names: list[str] = []
        self._packed: set[str] = set()
        given = set(weights.names())
        for name in weights.names():
            match = _NAME.fullmatch(name)
            part = None if match is None else match[3]
            if match is None or part not in ("_blocks", "_scales"):
                self._names.append(name)
                continue
            other = match[1] + ("_scales" if part == "_blocks" else "_blocks")
            if other not in given:
                raise CheckpointError(f"{name}: expected {other} too, got none. Copy the checkpoint again.")
            if part == "_blocks":
                self._names.append(match[1])
                self._packed.add(match[1])

    def names(self) -> list[str]:
        """Names of all tensors, as the model has them."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if name in self._packed:
            blocks, scales = (self._weights.shape(f"{name}_{part}") for part in ("blocks", "scales"))
            if len(blocks) != 4 or blocks[3] * 2 != _BLOCK or scales != blocks[:3]:
                raise CheckpointError(
                    f"{name}: expected blocks [experts, rows, K / 32, 16] and scales [experts, rows, K / 32], got "
                    f"{list(blocks)} and {list(scales)}. Check that config.json belongs to these weights."
                )
            return (*blocks[:2], blocks[2] * _BLOCK)
        shape = self._weights.shape(name)
        if self._is_matrix(name) and self._layout.is_transposed and len(shape) == 3:
            return shape[0], shape[2], shape[1]
        return shape

    def read(self, name: str) -> Tensor:
        """A tensor, in the dtype that it is stored in; of MXFP4 one of ours.

        Raises:
            CheckpointError: its scales are not powers of two that float16 holds.
        """
        if name in self._packed:
            return self._unpacked(name)
        tensor = self._weights.read(name)
        match = _NAME.fullmatch(name)
        if match is None:
            return tensor
        if self._is_matrix(name) and self._layout.is_transposed:
            tensor = tensor.transpose(1, 2)
        return self._halves(tensor, name).contiguous()

    def _is_matrix(self, name: str) -> bool:
        match = _NAME.fullmatch(name)
        return match is not None and match[3] is None

    def _halves(self, tensor: Tensor, name: str) -> Tensor:
        """Rows of the gate, then the others, [experts, rows, ...]."""
        if not self._layout.is_interleaved or "gate_up_proj" not in name:
            return tensor
        return torch.cat([tensor[:, ::2], tensor[:, 1::2]], dim=1)

    def _unpacked(self, name: str) -> Tensor:
        shape = self.shape(name)
        blocks = self._halves(self._weights.read(f"{name}_blocks"), name)
        scales = self._halves(self._weights.read(f"{name}_scales"), name)
        qdata = torch.empty((*blocks.shape[:-1], _BLOCK), dtype=torch.int8)
        scale = torch.empty(scales.shape, dtype=torch.float16)
        try:
            # One expert at a time: indices of numbers are eight bytes each.
            for number, packed in enumerate(blocks):
                codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
                qdata[number], scale[number] = from_mxfp4(codes, scales[number], name)
        except WeightFormatError as error:
            raise CheckpointError(str(error)) from error
        made: Tensor = Int8CoalescedTensor.from_components(
            {"qdata": qdata.reshape(shape), "scale": scale}, _BLOCK, self._activation_dtype, self._dtype, name
        )
        return made
