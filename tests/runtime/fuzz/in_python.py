"""Runs mutated programs in the stock Python runtime, in children that may crash."""

from __future__ import annotations

import ctypes
import os
import pathlib
import resource
import select
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .mutations import Mutant, Seed

_BATCH = 64
_SECONDS = 20
_ADDRESS_SPACE = 16 << 30


def outcomes(seeds: Sequence[Seed], mutants: Sequence[Mutant], report: pathlib.Path) -> Iterator[str]:
    """For each mutant a line, as ``fuzz_programs`` writes them; ``report`` is the library that tells of crashes."""
    report_crashes_to = ctypes.CDLL(str(report)).etcuda_fuzz_report_crashes_to
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        place = pathlib.Path(folder)
        calls = [_calls(seed, place) for seed in seeds]
        expected = [_run(seed.pte, seed.ptd, made, place) for seed, made in zip(seeds, calls, strict=True)]
        for start in range(0, len(mutants), _BATCH):
            batch = mutants[start : start + _BATCH]
            done = 0
            while done < len(batch):

                def tell(mutant: Mutant) -> str:
                    files = mutant.files(seeds[mutant.seed])
                    try:
                        got = _run(*files, calls[mutant.seed], place)
                    except Exception as error:  # of ExecuTorch's binding, which raises several kinds
                        return f"load {type(error).__name__} {error}".replace("\n", " ")
                    return "same" if got == expected[mutant.seed] else "changed"

                lines = _in_child(report_crashes_to, [lambda each=each: tell(each) for each in batch[done:]])
                yield from lines
                done += len(lines)


Calls = list[tuple[str, list[torch.Tensor]]]


def _calls(seed: Seed, place: pathlib.Path) -> Calls:
    """A call of each method, with small numbers."""
    program = _load(seed.pte, seed.ptd, place)
    calls: Calls = []
    for name in sorted(program.method_names):
        about = program.metadata(name)
        inputs = []
        for index in range(about.num_inputs()):
            info = about.input_tensor_meta(index)
            is_float = info.dtype() == int(_code(torch.float32))
            count = torch.Size(info.sizes()).numel()
            values = torch.arange(count)
            inputs.append((values % 7 * 0.25 - 0.5 if is_float else values % 5).reshape(tuple(info.sizes())))
        calls.append((name, inputs))
    return calls


def _code(dtype: torch.dtype) -> int:
    return {torch.float32: 6}[dtype]


def _load(pte: bytes, ptd: bytes, place: pathlib.Path) -> Any:
    from executorch.runtime import Runtime

    import etcuda.runtime  # noqa: F401  registers the delegate

    (place / "m.pte").write_bytes(pte)
    if ptd:
        (place / "m.ptd").write_bytes(ptd)
    return Runtime.get().load_program(place / "m.pte", data_path=place / "m.ptd" if ptd else None)


def _run(pte: bytes, ptd: bytes, calls: Calls, place: pathlib.Path) -> list[bytes]:
    program = _load(pte, ptd, place)
    methods = [(program.load_method(name), inputs) for name, inputs in calls]
    outputs = []
    for _ in range(2):
        for method, inputs in methods:
            for value in method.execute(inputs):
                outputs.append(repr(getattr(value, "shape", None)).encode())
                outputs.append(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return outputs


def _in_child(report_crashes_to: Callable[[int], object], jobs: Sequence[Callable[[], str]]) -> list[str]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        report_crashes_to(write)
        try:
            for job in jobs:
                os.write(write, job().encode(errors="replace") + b"\n")
        finally:
            os._exit(0)
    os.close(write)
    text, hung = b"", False
    while True:
        if not select.select([read], [], [], _SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            hung = True
            break
        data = os.read(read, 65536)
        if not data:
            break
        text += data
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = [line.decode(errors="replace") for line in text.split(b"\n")[:-1]]
    told = bool(lines) and lines[-1].startswith("crash ")
    if len(lines) < len(jobs) and not told:
        lines.append("hung" if hung else f"ended {status}")
    return lines
