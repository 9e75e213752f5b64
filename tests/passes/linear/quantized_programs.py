"""What the tests of quantised weights in programs share: small models, programs after the passes, a way to run them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from etcuda import Int4CoalescedConfig, Int8CoalescedConfig, quantize_weights
from etcuda.kernels.formats.registry import formats
from etcuda.kernels.linear.reference import linear_reference
from etcuda.options import BackendConfig
from etcuda.partitioner.partitioner import CudaPartitioner
from etcuda.passes.base import GraphPass
from etcuda.passes.manager import PASSES, run_passes
from etcuda.target import TARGETS
from tests.passes.handed_over import handed_over
from tests.passes.made_weights import made_weights

OPS = torch.ops.etcuda
H200 = TARGETS["sm_90"]
GPU, HOST = BackendConfig(H200), BackendConfig("host")
# Passes that join products, and the one that takes the joined ones apart.
FUSION = ("fuse_mlp", "fuse_qkv", "split_joined")
KERNELS = tuple(f"int{bits}_{what}" for bits in (4, 8) for what in ("matvec", "matvec_quantized", "matmul_reordered"))
_LINEAR = {record.bits: functools.partial(linear_reference, record.format_type) for record in formats()}


def delegated(program: ExportedProgram, config: BackendConfig = GPU) -> ExportedProgram:
    """The one program that the backend gets, before the passes."""
    return handed_over(program, CudaPartitioner(target=config.target))


def lowered(program: ExportedProgram, config: BackendConfig = GPU, without: tuple[str, ...] = ()) -> ExportedProgram:
    """The program after the passes, but those named in ``without`` and those that require one of them."""
    edge = delegated(program, config)
    run_passes(edge, config, passes_without(*without))
    return edge


def passes_without(*names: str) -> list[GraphPass]:
    """All passes but these and those that require one of them, in whatever way."""
    left = set(names)
    for each in PASSES:
        if not left.isdisjoint(each.requires):
            left.add(each.name)
    return [each for each in PASSES if each.name not in left]


def quantized(model: nn.Module, config: Any = None, every: bool = True) -> nn.Module:
    """The model with its linear layers, and its embeddings if ``every``, in int4."""
    layers = (nn.Linear, nn.Embedding) if every else (nn.Linear,)
    config = Int4CoalescedConfig() if config is None else config
    assert isinstance(config, Int4CoalescedConfig | Int8CoalescedConfig)
    quantize_weights(model.eval().requires_grad_(False), config, lambda module, name: isinstance(module, layers))
    return model


def export(model: nn.Module, *inputs: Tensor, dynamic: tuple[Any, ...] | None = None) -> ExportedProgram:
    return torch.export.export(model, inputs, dynamic_shapes=None if dynamic is None else dynamic)


def modules(program: ExportedProgram) -> list[GraphModule]:
    return [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]


def calls(program: ExportedProgram, *names: str) -> list[Node]:
    """Calls of etcuda's operators by their names; all of them without names."""
    found = [n for module in modules(program) for n in module.graph.nodes if "etcuda" in str(n.target)]
    return [n for n in found if not names or str(n.target).split(".")[1] in names]


def constants(program: ExportedProgram) -> dict[str, Tensor]:
    """Weights that the program takes, by name."""
    from etcuda.backend.constants import constant_tensors

    return constant_tensors(program)


def _matvec(bits: int) -> Callable[..., Tensor]:
    def run(x: Tensor, *rest: Any) -> Tensor:
        assert x.numel() // x.shape[-1] <= rest[7]
        return _gated(_LINEAR[bits](x, *rest[:7], "int8"), rest[-1])

    return run


def _matvec_quantized(bits: int) -> Callable[..., Tensor]:
    def run(q: Tensor, scale: Tensor, total: Tensor, *rest: Any) -> Tensor:
        assert q.shape[0] <= rest[8]
        x = (q.float().reshape(*scale.shape, 32) * scale.unsqueeze(-1)).flatten(-2)
        return _gated(_LINEAR[bits](x, *rest[:7], "exact").to(rest[7]), rest[-1])

    return run


def _gated(y: Tensor, activation: Any) -> Tensor:
    """What the products of few tokens do at their end, if they are told to by a name behind their integers."""
    if not isinstance(activation, str) or activation == "none":
        return y
    gate, up = y.chunk(2, -1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def _matmul_reordered(bits: int) -> Callable[..., Tensor]:
    # Column 128 u + 64 h + 16 c + 8 o + 2 t + e goes back to 128 u + 32 t + 16 h + 4 c + 2 e + o, of int8
    # 128 u + 16 c + 8 o + 2 t + e to 128 u + 32 t + 4 c + 2 o + e: by kernels/linear/README.md, not by the code under
    # test.
    sizes, back = ((2, 4, 2, 4, 2), (4, 1, 2, 5, 3)) if bits == 4 else ((8, 2, 4, 2), (3, 1, 2, 4))

    def run(reordered: Tensor, factor: Tensor, semaphores: Tensor, *rest: Any) -> Tensor:
        m, k, block_m = factor.shape[0], rest[0].shape[1] * 8 // bits, rest[10]
        assert reordered.shape[0] >= -(-m // block_m) * block_m
        if rest[-2]:  # for warpgroups: [K / 64, rows, 64], piece p of row m at p ^ (m % 8)
            pieces = reordered.reshape(k // 64, -1, 8, 8)
            swapped = torch.arange(8) ^ (torch.arange(pieces.shape[1]).unsqueeze(1) % 8)
            index = swapped.reshape(1, -1, 8, 1).expand_as(pieces)
            reordered = pieces.gather(2, index).permute(1, 0, 2, 3).reshape(reordered.shape)
        columns = reordered.reshape(-1, *sizes).permute(0, *back).reshape(reordered.shape)
        return _LINEAR[bits](columns[:m, :k].float() * factor.unsqueeze(-1), *rest[:7], "exact").to(rest[7])

    return run


_STAND_INS = {f"int{bits}_matvec": _matvec(bits) for bits in (4, 8)}
_STAND_INS |= {f"int{bits}_matvec_quantized": _matvec_quantized(bits) for bits in (4, 8)}
_STAND_INS |= {f"int{bits}_matmul_reordered": _matmul_reordered(bits) for bits in (4, 8)}


def runnable(program: ExportedProgram) -> Callable[..., Any]:
    """The program with the reference in the place of the kernels; takes the user's inputs in order."""
    with made_weights(program):
        module = program.module(check_guards=False)
    for inner in module.modules():
        if isinstance(inner, GraphModule):
            for node in inner.graph.nodes:
                name = str(node.target).removeprefix("etcuda.").removesuffix(".default")
                node.target = _STAND_INS.get(name, node.target)
            inner.recompile()

    def run(*inputs: Tensor) -> Any:
        with torch.no_grad():
            result = module(*inputs)
        return result[0] if isinstance(result, tuple | list) and len(result) == 1 else result

    return run


class Linear(nn.Module):
    """One product."""

    def __init__(self, k: int = 64, n: int = 48, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(k, n, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


class MLP(nn.Module):
    """A gated block: down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int = 64, hidden: int = 96, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return out


def make(kind: type[nn.Module], dtype: torch.dtype = torch.bfloat16, **arguments: Any) -> Any:
    """A seeded module."""
    torch.manual_seed(0)
    return kind(**arguments).to(dtype).eval().requires_grad_(False)


def close(got: Tensor, expected: Tensor, least: torch.dtype = torch.float32) -> bool:
    """Equal but for the order of sums in fp32 and one rounding to their dtype, or to ``least`` where it is coarser."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if not got.numel():
        return True
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    most = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
    return float(error) < max(most[got.dtype], most[least])
