"""Whole exports of recurrent layers over several chunks: for the host, run; for a GPU that is not here, looked at."""

from __future__ import annotations

import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export import Dim

from etcuda import CudaPartitioner
from etcuda.backend.inspect import inspect_program
from etcuda.kernels.recurrent.triton.delta_layer import gated_delta_layer_pdl
from tests.kernels.offline import compile_kernel
from tests.kernels.recurrent.recurrent_checks import close, naive_conv, naive_delta, naive_scan

_MOST = 300
_CHANNELS = 2 * 16 + 2 * 24


class Layers(nn.Module):
    """A convolution, a gated delta rule and a scan of the same numbers, with their states, or rings of states."""

    def __init__(self, slots: int = 1) -> None:
        super().__init__()
        ring = (slots,) if slots > 1 else ()
        self.register_buffer("weight", torch.linspace(-1, 1, _CHANNELS * 4).reshape(_CHANNELS, 4))
        self.register_buffer("rates", torch.tensor([-0.2, -0.6]))
        self.register_buffer("conv", torch.zeros(1, 3 + slots, _CHANNELS))
        self.register_buffer("delta", torch.zeros(1, *ring, 2, 16, 24))
        self.register_buffer("scan", torch.zeros(1, *ring, 2, 24, 16))

    def forward(self, x: Tensor, gates: Tensor, positions: Tensor) -> Tensor:
        mixed, conv = torch.ops.etcuda.causal_conv(x, self.conv, positions, self.weight, None, "silu")
        q, k, v = (part.unflatten(-1, (-1, width)) for part, width in
                   zip(mixed.split([16, 16, 48], -1), (16, 16, 24), strict=True))  # fmt: skip
        out, delta = torch.ops.etcuda.gated_delta_rule(
            q, k, v, -gates, gates.sigmoid(), self.delta, positions, True
        )  # fmt: skip
        scanned, scan = torch.ops.etcuda.selective_scan(
            v, gates, self.rates, k, q, None, None, self.scan, positions, 0.0, 1.0
        )  # fmt: skip
        self.conv.copy_(conv)
        self.delta.copy_(delta)
        self.scan.copy_(scan)
        return out + scanned

    def expected(self, x: Tensor, gates: Tensor) -> Tensor:
        """Token by token, from the beginning."""
        start = {"positions": torch.arange(x.shape[1]), "activation": "silu", "bias": None}
        mixed, _ = naive_conv({"x": x, "state": self.conv, "weight": self.weight} | start)
        q, k, v = mixed[..., :16].unsqueeze(2), mixed[..., 16:32].unsqueeze(2), mixed[..., 32:].unflatten(-1, (2, 24))
        given = {"q": q, "k": k, "v": v, "g": -gates, "beta": gates.sigmoid(), "state": self.delta, "normalize": True}
        out, _ = naive_delta(given | start)
        given = {"x": v, "dt": gates, "a": self.rates, "b": k, "c": q, "d": None, "dt_bias": None, "state": self.scan}
        scanned, _ = naive_scan(given | start | {"dt_min": 0.0, "dt_max": 1.0})
        return out + scanned


def program(target: str, slots: int = 1) -> bytes:
    """Methods over the same states: for one token, for several, and for as many as a ring has slots."""
    methods = {}
    model = Layers(slots).eval()
    for name, count, most in (("one", 1, 1), ("several", 100, _MOST), ("rows", slots, slots)):
        if name == "rows" and slots == 1:
            continue
        length = Dim(name, min=2, max=most) if most > 1 else None
        shapes = None if length is None else ({1: length}, {1: length}, {0: length})
        inputs = (torch.randn(1, count, _CHANNELS), torch.rand(1, count, 2), torch.arange(count))
        methods[name] = torch.export.export(model, inputs, dynamic_shapes=shapes)
    return bytes(
        to_edge_transform_and_lower(methods, partitioner=[CudaPartitioner(target=target)]).to_executorch().buffer
    )


@pytest.mark.slow
def test_any_lengths_one_after_another_on_the_host(tmp_path: pathlib.Path) -> None:
    from executorch import runtime

    import etcuda.runtime  # noqa: F401  registers the delegate

    path = tmp_path / "m.pte"
    path.write_bytes(program("host"))
    loaded = runtime.Runtime.get().load_program(path)
    methods = {name: loaded.load_method(name) for name in ("one", "several")}
    random = torch.Generator().manual_seed(0)
    x, gates = torch.randn(1, 420, _CHANNELS, generator=random), torch.rand(1, 420, 2, generator=random)
    # Both sequences begin at position 0, the second one in what the first one left.
    for sizes in ([300, 1, 1, 64, 2, 52], [2, 129, 1, 63, 65]):
        start, outs = 0, []
        for size in sizes:
            part = slice(start, start + size)
            inputs = [x[:, part].contiguous(), gates[:, part].contiguous(), torch.arange(start, start + size)]
            outs.append(methods["one" if size == 1 else "several"].execute(inputs)[0].clone())
            start += size
        close((torch.cat(outs, 1),), (Layers().expected(x[:, :start], gates[:, :start]),), 5e-5)


@pytest.mark.slow
def test_kernels_of_a_gpu_write_states_in_place() -> None:
    chunked = {"delta_prepare_kernel", "delta_walk_kernel", "selective_scan_kernel"}
    rows = {"gated_delta_rows_kernel", "selective_scan_rows_kernel"}
    steps = {"gated_delta_step_kernel", "selective_scan_kernel"}
    for slots, expected in (
        (1, {"one": steps, "several": chunked}),
        (5, {"one": rows, "several": chunked, "rows": rows}),
    ):
        methods = {method.name: method for method in inspect_program(program("sm_90", slots)).methods}
        assert set(methods) == set(expected)
        for name, kernels in expected.items():
            (delegate,) = methods[name].delegates
            names = set(delegate.images[0].kernels)
            assert kernels | {"causal_conv_kernel"} <= names
            assert not any(word in kernel for kernel in names for word in ("clone", "copy"))


@pytest.mark.parametrize(("rows", "slots"), [(4, 1), (8, 5)])
def test_a_layer_of_one_token_for_a_gpu(rows: int, slots: int) -> None:
    """With one state no address of a state depends on the position: the loads of both are in flight together."""
    pointers = ("x", "z", "b", "a", "weight", "bias", "a_log", "dt_bias", "norm", "conv", "state", "positions", "out")
    types = dict.fromkeys(pointers, "*bf16") | {"state": "*fp32", "positions": "*i64", "scale": "fp32", "eps": "fp32"}
    strides = ("x_batch", "x_channel", "z_batch", "z_head", "z_dim", "b_batch", "b_head", "a_batch", "a_head")
    types |= dict.fromkeys(strides, "i32")
    constants = {
        "HEADS": 4, "GROUP": 2, "K": 128, "V": 128, "WIDTH": 4, "ROWS": rows, "SLOTS": slots, "HAS_BIAS": False,
        "BLOCK_K": 128, "BLOCK_V": 128,
    }  # fmt: skip
    code = compile_kernel(gated_delta_layer_pdl, types, constants, 8, "ttgir", set())
    loads = [line for line in code.splitlines() if "tt.load" in line]
    position = next(place for place, line in enumerate(loads) if "i64" in line)
    state = next(place for place, line in enumerate(loads) if "f32" in line and "x" in line.split(":")[-1])
    assert (state < position) == (slots == 1)
