"""Programs of a dynamic number of tokens on the local GPU: each range has the bits of its kernels, called alone."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor

from etcuda import CompileOptions, Int4CoalescedConfig, Int8CoalescedConfig
from etcuda.options import BackendConfig
from etcuda.passes.recognize.ways import COND
from etcuda.target import TARGETS
from examples.cpp.session import run_calls
from examples.export import export_program
from examples.models import Call
from examples.running import gpu_arch
from tests.passes.linear.quantized_programs import MLP, export, lowered, make, modules, quantized
from tests.passes.made_weights import made_weights

# Of int8 weights: up to here the gate is part of a kernel.
MATVEC_ROWS = 8
ROWS = (2, 3, 4, 5, 8, 9, 16, 17, 64, 65, 128, 129, 300)


@pytest.mark.parametrize("config", [Int4CoalescedConfig(), Int8CoalescedConfig()], ids=["int4", "int8"])
@pytest.mark.parametrize("leading", [(), (2,)], ids=["rows", "batch"])
def test_each_range_has_the_bits_of_its_kernels(
    config: Any, leading: tuple[int, ...], tmp_path: pathlib.Path, run_session: pathlib.Path
) -> None:
    arch = gpu_arch()
    assert arch is not None
    model = quantized(make(MLP, dim=512, hidden=1280, bias=True), config)
    x = torch.randn(*leading, 40, 512).to(torch.bfloat16)
    program = export(model, x, dynamic=({len(leading): torch.export.Dim("rows", min=2, max=300)},))
    path = tmp_path / "model.pte"
    export_program({"forward": program}, arch, path, CompileOptions(progress=False))

    # The graph that it is compiled from, whose branches the host takes, each kernel launched by itself.
    after = lowered(program, BackendConfig(TARGETS[arch]))
    # A gate that is no kernel is the compiler's, which rounds its result once, where eager rounds SiLU's too.
    gate_is_kernel = isinstance(config, Int4CoalescedConfig)
    choices = [node for module in modules(after) for node in module.graph.nodes if node.target is COND]
    assert len(choices) >= 2
    with made_weights(after):
        eager = after.module(check_guards=False).cuda()

    def expected(x: Tensor) -> Tensor:
        with torch.no_grad():
            result = eager(x.cuda())
        made: Tensor = result[0] if isinstance(result, tuple | list) else result
        return made.cpu()

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*leading, rows, 512, generator=generator).to(torch.bfloat16) for rows in ROWS]
    wanted = [expected(each) for each in inputs]
    calls = [Call("forward", (each,)) for each in inputs]
    for _ in range(2):
        for rows, got, want in zip(ROWS, run_calls(run_session, path, calls, wanted), wanted, strict=True):
            if gate_is_kernel or rows * math.prod(leading) <= MATVEC_ROWS:
                assert torch.equal(got, want), rows
            else:
                torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2 * float(want.abs().max()))
