"""``python -m benchmarks.export_memory``: what exporting an int4 decoder's products takes of memory, step by step.

The weights are random bytes in a file that is made once and mapped; the model has their shapes and next to nothing
else.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import struct
import sys
import time
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.process_memory import PeakMemory

# Sizes of models: hidden, intermediate, keys and values, layers.
SHAPES = {
    "tiny": (256, 512, 64, 4),
    "wide": (2048, 32768, 512, 4),
    "2b": (2048, 8192, 512, 16),
    "8b": (4096, 14336, 1024, 32),
    "31b": (5376, 21504, 4096, 60),
}
GROUP = 32


def products(shape: str) -> dict[str, tuple[int, int]]:
    """Rows and columns of the weights of one layer, by name."""
    h, i, kv, _ = SHAPES[shape]
    return {"q": (h, h), "k": (kv, h), "v": (kv, h), "o": (h, h), "gate": (i, h), "up": (i, h), "down": (h, i)}


class Layer(nn.Module):
    """The products of a decoder's layer, without attention."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        for name, (n, k) in products(shape).items():
            self.add_module(name, nn.Linear(k, n, bias=False, dtype=torch.bfloat16, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to the same."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        x = x + self.o(nn.functional.pad(k * v, (0, q.shape[-1] - k.shape[-1])) * q)
        out: Tensor = x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return out


class Decoder(nn.Module):
    """Layers after one another."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape) for _ in range(SHAPES[shape][3]))

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to the same."""
        for layer in self.layers:
            x = layer(x)
        return x


def write_weights(path: pathlib.Path, shape: str) -> None:
    """A file as ``etcuda.save_weights`` writes it, a piece of it in memory at a time."""
    weights, entries, offset = {}, {}, 0
    for layer in range(SHAPES[shape][3]):
        for name, (n, k) in products(shape).items():
            full = f"layers.{layer}.{name}.weight"
            weights[full] = {
                "type": "int4", "group_size": GROUP, "activation": "int8", "dtype": "bfloat16",
                "parts": ["qdata", "scale"],
            }  # fmt: skip
            for part, dtype, size, nbytes in (
                ("qdata", "U8", [n, k // 2], n * k // 2),
                ("scale", "F16", [n, k // GROUP], n * k // GROUP * 2),
            ):
                span = [offset, offset + nbytes]
                entries[f"{full}.{part}"] = {"dtype": dtype, "shape": size, "data_offsets": span}
                offset += nbytes
    metadata = {"etcuda": json.dumps({"version": 1, "weights": weights, "same": {}})}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, entry in entries.items():
            _write_random(file, name, entry["dtype"] == "F16", entry["data_offsets"])


def _write_random(file: object, name: str, is_scale: bool, span: list[int]) -> None:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    left = span[1] - span[0]
    while left:
        count = min(left, 16 << 20)
        if is_scale:
            rng.uniform(0.001, 0.01, count // 2).astype(np.float16).tofile(file)  # type: ignore[arg-type]
        else:
            rng.integers(0, 256, count, dtype=np.uint8).tofile(file)  # type: ignore[arg-type]
        left -= count


def main() -> int:
    """Measures one export."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_memory", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--weights", choices=("pte", "ptd"), default="pte")
    parser.add_argument("--tokens", type=int, nargs="*", default=[1], help="a method for each; one has one token")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("out/export_memory"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / f"{arguments.shape}.safetensors"
    if not path.exists():
        write_weights(path, arguments.shape)
    print(f"{path}: {path.stat().st_size / 2**30:.2f} GiB")
    with PeakMemory(0.1, proportional=True) as memory:
        _measure(arguments, path, memory)
    return 0


def _measure(arguments: argparse.Namespace, path: pathlib.Path, memory: PeakMemory) -> None:
    start = time.perf_counter()

    def report(step: str) -> None:
        nonlocal start
        now = time.perf_counter()
        print(f"{step:14s} {now - start:6.1f} s  peak {memory.take()}", flush=True)
        start = now

    from executorch.exir import to_edge_transform_and_lower

    from etcuda import CudaPartitioner, load_weights, save_program

    report("imports")
    model = Decoder(arguments.shape).eval()
    model.load_state_dict(load_weights(path), assign=True)
    model.requires_grad_(False)
    report("load_weights")
    hidden = SHAPES[arguments.shape][0]
    programs = {}
    for tokens in arguments.tokens:
        x = torch.zeros(tokens, hidden, dtype=torch.bfloat16)
        programs[f"tokens_{tokens}"] = torch.export.export(model, (x,))
    report("torch.export")
    options = {"weights": arguments.weights}
    partitioner = {name: [CudaPartitioner(arguments.target, options=options)] for name in programs}
    lowered = to_edge_transform_and_lower(programs, partitioner=partitioner)
    report("lower")
    program = lowered.to_executorch()
    report("to_executorch")
    files = save_program(program, arguments.folder / f"{arguments.shape}.pte")
    report("save_program")
    print(", ".join(f"{file.name}: {file.stat().st_size / 2**30:.2f} GiB" for file in files))


if __name__ == "__main__":
    sys.exit(main())
