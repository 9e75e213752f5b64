"""Random numbers on the local GPU: those of eager mode on the CPU, bit for bit where no ``log`` or ``cos`` is."""

from __future__ import annotations

import pathlib

import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor

from etcuda import CudaPartitioner, random, save_program
from examples.cpp.session import run_calls
from examples.models import Call
from examples.running import gpu_arch
from tests.backend.random_cases import OPTIONS, SEED, FlatDraws, check, expected, inputs, programs


def test_numbers_are_those_of_the_cpu(tmp_path: pathlib.Path, run_session: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    methods = programs(FlatDraws())
    chosen = {name: methods[name] for name in ("draws", "reseed")}
    partitioners = {name: [CudaPartitioner(arch, options=OPTIONS)] for name in chosen}
    program = tmp_path / "random.pte"
    save_program(to_edge_transform_and_lower(chosen, partitioner=partitioners).to_executorch(), program)

    calls, like, states = [], [], []
    state = random.make_state(SEED)
    for rows in (5, 64, 1):
        states.append((state, rows))
        results, state = expected(state, rows)
        calls.append(Call("draws", inputs(rows)))
        like.append(torch.cat([each.double().flatten() for each in results]))
    calls += [Call("reseed", (random.make_state(SEED),)), Call("draws", inputs(3))]
    states.append((random.make_state(SEED), 3))
    again = expected(random.make_state(SEED), 3)[0]
    like += [state, torch.cat([each.double().flatten() for each in again])]

    *outputs, old, last = run_calls(run_session, program, calls, like)
    assert torch.equal(old, state)
    for (before, rows), flat in zip(states, [*outputs, last], strict=True):
        check(unflattened(flat, expected(before, rows)[0]), before, rows)


def unflattened(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = flat.split([each.numel() for each in like])
    return [part.reshape(each.shape).to(each.dtype) for part, each in zip(parts, like, strict=True)]
