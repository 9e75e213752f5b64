"""Measures what was exported: rates of decoding and of prompts, and the kernels of a step.

A program is measured only if its logits are those of the model in PyTorch, and if they have the same bits with CUDA
graphs as without.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import pathlib
import statistics
import time
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.attention.end_to_end_run import busy_us, by_name, events_of
from benchmarks.native_session import NativeSession
from benchmarks.whole_models.eager import eager_model
from benchmarks.whole_models.shapes import CONTEXTS, PROMPTS, SHAPES

# Of logits against eager in fp32, relative norm; bf16 may have 1.5 times eager's own. W4A8 quantises activations too.
MOST_ERROR = {"int4": 0.2, "none": 2e-2}
OF_EAGERS_OWN = 1.5
STEPS, PROFILED = 300, 5
GRAPHS = "ETCUDA_CUDA_GRAPHS"


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine on one model; microseconds of the host's clock, inputs and outputs in host memory.

    Attributes:
        engine: ``"etcuda"``, ``"etcuda, no graph"``, ``"torch.compile bf16"``.
        decode_us: mean of a step, one token after another, by context; of the calls, timed in C++.
        prompt_us: median of a whole prompt, by its length.
        load_s: until the first step is done.
        error: of logits against eager in fp32, relative norm.
        eager_error: of eager in bf16, the same.
        kernels: of a step at the shortest context: launches and microseconds by name; of the GPU alone.
        busy_us: in which some kernel of that step ran.
        weights_s: of ``load_s``, until the method with all weights was loaded; 0 where that was not timed.
        weight_bytes: that were loaded meanwhile.
    """

    model: str
    engine: str
    cuda_graph: bool
    decode_us: dict[int, float]
    prompt_us: dict[int, float]
    load_s: float
    error: float
    eager_error: float
    kernels: dict[str, tuple[float, float]]
    busy_us: float
    weights_s: float = 0.0
    weight_bytes: int = 0


def tokens(name: str, length: int, seed: int = 0) -> Tensor:
    """[1, length] int64, random."""
    vocabulary = SHAPES[name].config["vocab_size"]
    return torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))


def measure(name: str, folder: pathlib.Path, library: pathlib.Path, has_gpu: bool) -> list[Row]:
    """The rows of a model, with CUDA graphs and without; ``profiled`` adds the kernels.

    Raises:
        RuntimeError: logits are not those of eager, or differ with graphs.
    """
    expected, own = reference(name, folder, "cuda" if has_gpu else "cpu")
    rows, bits = [], []
    for graphs in (True, False) if has_gpu else (False,):
        os.environ[GRAPHS] = str(int(graphs))
        row, logits = _measure(name, folder, library, graphs, expected, own)
        rows.append(row)
        bits.append(logits)
    for other in bits[1:]:
        if not all(torch.equal(*pair) for pair in zip(bits[0], other, strict=True)):
            raise RuntimeError(f"{name}: expected the same logits with CUDA graphs and without, got others.")
    return rows


def script(name: str) -> list[tuple[str, Tensor, Tensor]]:
    """Calls whose logits are compared: a prompt, then eight tokens."""
    prompt = tokens(name, PROMPTS[0], seed=7)
    calls = [("prefill", prompt, torch.arange(PROMPTS[0]))]
    for index in range(8):
        at = PROMPTS[0] + index
        calls.append(("decode", tokens(name, 1, seed=index), torch.tensor([at])))
    return calls


@functools.lru_cache(maxsize=1)
def reference(name: str, folder: pathlib.Path, device: str) -> tuple[list[Tensor], float]:
    """The logits of the script in fp32, by PyTorch in eager mode, and the error of bf16 against them.

    Where the model does not fit the device in fp32 too, the logits are those of bf16, and the error is 0.
    """
    model = eager_model(name, folder, device)
    with torch.no_grad():
        rounded = [model(given.to(device), at.to(device)).float().cpu() for _, given, at in script(name)]
        nbytes = sum(each.nbytes for each in {id(each): each for each in model.parameters()}.values())
        if device == "cuda" and 2 * nbytes > 0.8 * torch.cuda.mem_get_info()[0]:
            return rounded, 0.0
        exact_model = copy.deepcopy(model).float()
        exact = [exact_model(given.to(device), at.to(device)).cpu() for _, given, at in script(name)]
    return exact, worst(rounded, exact)


def worst(got: list[Tensor], expected: list[Tensor]) -> float:
    """The greatest relative norm of the difference."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True))


def check(name: str, engine: str, error: float, own: float) -> None:
    """Raises:
    RuntimeError: the error is too great for a figure to count.
    """
    most = max(MOST_ERROR[SHAPES[name].quant], OF_EAGERS_OWN * own)
    if not error <= most:
        raise RuntimeError(f"{name}, {engine}: expected logits within {most:.3g} of fp32, got {error:.3g}.")


def _measure(
    name: str,
    folder: pathlib.Path,
    library: pathlib.Path,
    graphs: bool,
    expected: list[Tensor],
    own: float,
) -> tuple[Row, list[Tensor]]:
    begun = time.perf_counter()
    vocabulary = SHAPES[name].config["vocab_size"]
    with NativeSession(library, folder / f"{name}.pte", folder / f"{name}.ptd") as session:
        session.load("decode")
        weights_s = time.perf_counter() - begun
        session.call("decode", tokens(name, 1), torch.tensor([0]))
        load_s = time.perf_counter() - begun
        # Three times, so that the calls that are compared are launches of graphs.
        for _ in range(3 if graphs else 1):
            got = []
            for method, given, at in script(name):
                session.call(method, given, at)
                got.append(session.output((1, vocabulary), torch.bfloat16).float())
        error = worst(got, expected)
        check(name, "etcuda", error, own)
        prompts = {length: _prompt_us(session, name, length) for length in PROMPTS}
        decode = {context: _decode_us(session, name, context) for context in CONTEXTS}
    engine = "etcuda" if graphs else "etcuda, no graph"
    nbytes = (folder / f"{name}.ptd").stat().st_size
    row = Row(name, engine, graphs, decode, prompts, load_s, error, own, {}, 0.0, weights_s, nbytes)
    return row, got


def _prompt_us(session: NativeSession, name: str, length: int) -> float:
    inputs = tokens(name, length), torch.arange(length)
    return statistics.median([session.call("prefill", *inputs) for _ in range(13)][3:])


def _decode_us(session: NativeSession, name: str, context: int) -> float:
    """Of a step of a loop on the host, the mean of ``STEPS`` at the last place of ``context``."""
    for position in range(context - 30, context):
        session.call("decode", tokens(name, 1), torch.tensor([position]))
    calls = [(tokens(name, 1, seed), torch.tensor([context - 1])) for seed in range(STEPS)]
    # Timed inside: what Python does between two calls is no part of them.
    return statistics.mean([session.call("decode", *call) for call in calls])


def profiled(row: Row, folder: pathlib.Path, library: pathlib.Path) -> Row:
    """The row with the kernels of a step. Whatever this process times behind a profile takes longer: to be called when
    all that counts was timed."""
    os.environ[GRAPHS] = str(int(row.cuda_graph))
    call = tokens(row.model, 1), torch.tensor([CONTEXTS[0] - 1])
    with NativeSession(library, folder / f"{row.model}.pte", folder / f"{row.model}.ptd") as session:
        for _ in range(30):
            session.call("decode", *call)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(PROFILED):
                session.call("decode", *call)
            torch.cuda.synchronize()
    events: Any = events_of(profiler)
    return dataclasses.replace(row, kernels=by_name(events, PROFILED), busy_us=busy_us(events) / PROFILED)
