"""What no output depends on is dropped."""

from __future__ import annotations

import torch

from etcuda.passes.manager import run_passes
from tests.partitioner.programs import edge
from tests.passes.canonical.rewriting import HOST, X, targets

aten = torch.ops.aten


def test_dead_code_goes() -> None:
    program = edge(lambda x: x.sin() + 1, X)
    output = program.graph.output_node()
    with program.graph.inserting_before(output):
        dead = program.graph.call_function(aten.cos.default, (output.args[0][0],))  # type: ignore[index,misc]
    dead.meta = dict(output.args[0][0].meta)  # type: ignore[index,union-attr,misc]
    run_passes(program, HOST)
    assert aten.cos.default not in targets(program)
