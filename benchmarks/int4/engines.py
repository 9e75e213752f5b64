"""What is measured: our kernels, PyTorch's, torchao's, those of the installed executorch wheel, and a plain read.

In cells of the kind "gated" activations are gate | up [M, 2 K], and every engine computes silu(gate) * up first.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.int4.cells import Cell
from benchmarks.int4.gate import silu_gate
from benchmarks.int4.read import read
from etcuda.kernels.activations.reorder_launch import Reordered, reorder, gate_reorder
from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.formats.stored import StoredWeight
from etcuda.kernels.linear import launch
from etcuda.kernels.linear.choose.configs import MatmulConfig
from etcuda.kernels.linear.choose.select import choose
from etcuda.kernels.linear.run import run_config

Call = Callable[[Tensor], Tensor]
OURS = ("etcuda", "etcuda, PDL")
# Ours in parts: a product whose activations the kernel in front has reordered, as for all but the first product of an
# input, or behind a gate; and all kernels by themselves where two can be one.
PARTS = ("etcuda, reordered before", "etcuda, gate apart")
# Engines whose result is not the product.
UNCHECKED = ("read", "read, PDL", "gate", "gate, PDL")


class UnsupportedError(Exception):
    """Why an engine is not measured in a cell."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight as stored, and what peers make theirs of: integers, scales and zero points in fp32 [N, G]."""

    stored: StoredWeight

    @property
    def integers(self) -> Tensor:
        """uint8 or int8 [N, K]."""
        return self.stored.format.unpack(self.stored.qdata)

    def dequantize(self, start: int, end: int) -> Tensor:
        """fp32 rows of the weight."""
        return self.stored.rows(start, end).dequantize()


Engine = Callable[[Cell, Weight, LocalDevice], Call]


def ours(pdl: int, cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """Our kernel, chosen and configured as export would."""
    problem = cell.problem
    config = choose(problem, device, pdl).config
    if cell.kind == "gated":
        height = _height(config)
        return lambda x: _on_tensor_cores(
            cell, weight, device, gate_reorder(x, None, "silu", problem.activation_dtype, height, pdl), pdl
        )  # fmt: skip
    return lambda x: run_config(weight.stored, x, config, None, problem.activation_dtype, device.num_sms, pdl)


def reordered_before(cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """Our product alone, of reordered activations."""
    if cell.kind == "gated":
        raise UnsupportedError("behind a gate activations are not reordered before")
    height = _height(choose(cell.problem, device, 1).config)
    return lambda x: _on_tensor_cores(cell, weight, device, _order_once(x, cell.problem.activation_dtype, height), 1)


def gate_apart(cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """Gate, reordering and product, each a kernel that is launched early."""
    if cell.kind != "gated":
        raise UnsupportedError("behind a gate only")
    height = _height(choose(cell.problem, device, 1).config)
    return lambda x: _on_tensor_cores(
        cell, weight, device, reorder(4, silu_gate(x, 1), cell.problem.activation_dtype, height, 1, 1), 1
    )  # fmt: skip


def _height(config: object) -> int:
    if not isinstance(config, MatmulConfig) or not config.warpgroups:
        raise UnsupportedError("where the kernel in CUDA C++ serves")
    return config.block_m


@functools.lru_cache(maxsize=1)
def _order_once(x: Tensor, activation_dtype: str, block_m: int) -> Reordered:
    return reorder(4, x, activation_dtype, block_m, 1, 0)


def _on_tensor_cores(cell: Cell, weight: Weight, device: LocalDevice, reordered: Reordered, pdl: int) -> Tensor:
    problem = cell.problem
    config = choose(problem, device, pdl).config
    assert isinstance(config, MatmulConfig)
    how = config.launch(device.num_sms, pdl)
    return launch.matmul_reordered(weight.stored, reordered, how, None, torch.bfloat16, problem.activation_dtype)


def behind_gate(engine: Engine, cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """A peer; in cells of the kind "gated" what it multiplies is computed in front."""
    call = engine(cell, weight, device)
    return call if cell.kind != "gated" else lambda x: call(silu_gate(x, 0))


def gate_alone(pdl: int, cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """The gate that runs in front of peers, or launched early as in front of ours."""
    if cell.kind != "gated":
        raise UnsupportedError("behind a gate only")
    return lambda x: silu_gate(x, pdl)


def cublas(cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """The dequantised weight in bf16."""
    dense = torch.empty(cell.problem.n, cell.problem.k, dtype=torch.bfloat16, device="cuda")
    for start in range(0, cell.problem.n, 16384):
        dense[start : start + 16384] = weight.dequantize(start, start + 16384).to(torch.bfloat16)
    return lambda x: x @ dense.T


def tinygemm(cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """PyTorch's ``_weight_int4pack_mm`` on the same integers; bf16 scales and zeros."""
    if cell.problem.format_name != "int4":
        raise UnsupportedError("int4 only")
    if cell.problem.m > 64:
        raise UnsupportedError("measured up to 64 rows: it is for few")
    q = weight.integers
    packed = (q[:, ::2] << 4 | q[:, 1::2]).contiguous()
    tiles = torch.ops.aten._convert_weight_to_int4pack(packed, 8)
    scale, zero = weight.stored.scale.float(), weight.stored.zero
    assert zero is not None
    pairs = torch.stack([scale, scale * (8 - zero.float())], -1).to(torch.bfloat16).transpose(0, 1).contiguous()
    group = cell.problem.group_size
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, tiles, group, pairs)


def torchao_default(cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """``quantize_`` with torchao's default int4 weight-only configuration."""
    if cell.problem.format_name != "int4" or cell.problem.m > 64:
        raise UnsupportedError("int4, up to 64 rows")
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(cell.problem.k, cell.problem.n, bias=False, dtype=torch.bfloat16, device="cuda")
    layer.weight.data.copy_(weight.stored.dequantize())
    quantize_(layer, Int4WeightOnlyConfig(group_size=cell.problem.group_size))
    return lambda x: layer(x)  # type: ignore[no-any-return]


def executorch(name: str, cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """A Triton kernel of the executorch wheel: W4A16, symmetric, so that our zero points do not count."""
    if cell.problem.format_name != "int4":
        raise UnsupportedError("int4 only")
    if name == "int4_matvec" and cell.problem.m != 1:
        raise UnsupportedError("one row only")
    if name == "int4_matmul" and cell.problem.m < 16:
        raise UnsupportedError("measured from 16 rows on")
    importlib.import_module("executorch.backends.cuda.triton")
    operator: Any = getattr(torch.ops.triton, name)
    q = weight.integers
    packed = (q[:, 1::2] << 4 | q[:, ::2]).contiguous().view(torch.int8)
    scale = weight.stored.scale.to(torch.bfloat16)
    group = cell.problem.group_size
    return lambda x: operator(x, packed, scale, group)  # type: ignore[no-any-return]


def plain_read(pdl: int, cell: Cell, weight: Weight, device: LocalDevice) -> Call:
    """Reads as many bytes as the weight has, nothing else."""
    if cell.problem.m > 1 and cell.kind != "prompt":
        raise UnsupportedError("the same bytes as for one row")
    source = torch.randint(0, 1 << 30, (cell.problem.weight_bytes // 4,), dtype=torch.int32, device="cuda")
    return lambda x: read(source, pdl)


ENGINES: dict[str, Engine] = {
    "etcuda": functools.partial(ours, 0),
    "etcuda, PDL": functools.partial(ours, 1),
    "etcuda, reordered before": reordered_before,
    "etcuda, gate apart": gate_apart,
    "tinygemm": functools.partial(behind_gate, tinygemm),
    "cuBLAS bf16": functools.partial(behind_gate, cublas),
    "executorch matvec": functools.partial(behind_gate, functools.partial(executorch, "int4_matvec")),
    "executorch matmul": functools.partial(behind_gate, functools.partial(executorch, "int4_matmul")),
    "torchao default": functools.partial(behind_gate, torchao_default),
    "gate": functools.partial(gate_alone, 0),
    "gate, PDL": functools.partial(gate_alone, 1),
    "read": functools.partial(plain_read, 0),
    "read, PDL": functools.partial(plain_read, 1),
}
