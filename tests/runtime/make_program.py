"""Writes ``.pte``s whose delegate is a hand-written code image, through the stock ExecuTorch exporter.

Each line of standard input is JSON: ``image`` and ``path``, and optionally ``methods``, ``weight``, ``state``,
``external`` (weights go to a ``.ptd`` beside the program), ``device`` and ``damage`` (flip a bit of the image). A line
of standard output says that its program is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import struct
import sys

import flatbuffers
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from torch.export import Dim, ExportedProgram, export

from etcuda.backend.schema.generated import delegate_generated as schema

IMAGE_OFFSET = 4096
FLOAT32 = 6


@dataclasses.dataclass
class Recipe:
    image: str
    path: str
    methods: tuple[str, ...] = ("forward",)
    weight: tuple[float, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    state: tuple[float, ...] = ()
    external: str | None = None
    device: int = 0
    damage: bool = False


def as_bytes(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def key_of(data: bytes) -> str:
    return "etcuda/w/" + hashlib.sha256(data).hexdigest()


def vector_value(name: str, length: int) -> schema.ValueT:
    value, dim = schema.ValueT(), schema.DimT()
    value.name, value.dtype, value.dimOrder = name, FLOAT32, [0]
    dim.min, dim.max, dim.size = 1, length, 0
    value.dims = [dim]
    return value


def size_of_input() -> schema.SizeT:
    size, step = schema.SizeT(), schema.SizeStepT()
    step.op, step.value, step.dim = schema.SizeOp.input, 0, 0
    size.text, size.steps = "n", [step]
    return size


def storage(data: bytes, *, stored: bool, state_name: str | None = None) -> schema.StorageT:
    made = schema.StorageT()
    made.nbytes = len(data)
    if stored:
        made.dataKey, made.sha256 = key_of(data), list(hashlib.sha256(data).digest())
    made.isMutable, made.stateName = state_name is not None, state_name
    return made


def constant(name: str, index: int, length: int) -> schema.ConstantT:
    made = schema.ConstantT()
    made.name, made.fqn, made.storage, made.dtype = name, f"layer.{name}", index, FLOAT32
    made.sizes, made.strides, made.storageOffset = [length], [1], 0
    return made


def image_record(code: bytes, device: int) -> schema.ImageT:
    made = schema.ImageT()
    made.target, made.device = ("host", 0) if device == 0 else ("sm_90", 1)
    made.computeCapability, made.codeKind = (0, 2) if device == 0 else (90, 0)
    made.machine, made.isa = "x86_64", "x86-64-v2"
    made.offset, made.nbytes, made.sha256 = IMAGE_OFFSET, len(code), list(hashlib.sha256(code).digest())
    return made


def build_blob(recipe: Recipe, method: str) -> bytes:
    code = pathlib.Path(recipe.image).read_bytes()
    weight = as_bytes(recipe.weight)
    state = as_bytes(recipe.state or (0.0,) * len(recipe.weight))
    root = schema.DelegateT()
    root.formatVersion, root.method, root.producers = 2, method, []
    length = len(recipe.weight)
    root.inputs, root.outputs = [vector_value("x", length)], [vector_value("y", length)]
    root.sizes = [size_of_input()]
    root.storages = [storage(weight, stored=True), storage(state, stored=bool(recipe.state), state_name="cache")]
    root.constants = [constant("weight", 0, length), constant("state", 1, length)]
    root.images = [image_record(code, recipe.device)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(root.Pack(builder), b"ETCD")
    payload = bytes(builder.Output())
    header = b"ETCUDA\0\2" + struct.pack("<IIQ", 64, 0, len(payload)) + hashlib.sha256(payload).digest() + bytes(8)
    if recipe.damage:
        code = bytes([code[0] ^ 1]) + code[1:]
    return (header + payload).ljust(IMAGE_OFFSET, b"\0") + code


class EtcudaBackend(BackendDetails):
    """Stands in for the exporter: whatever the graph is, the delegate is the fake image."""

    recipe: Recipe

    @staticmethod
    def preprocess(edge_program: ExportedProgram, compile_specs: list[CompileSpec]) -> PreprocessResult:
        recipe = EtcudaBackend.recipe
        store = NamedDataStore()
        for data in (as_bytes(recipe.weight), as_bytes(recipe.state)):
            if data:
                store.add_named_data(key_of(data), data, alignment=64, external_tag=recipe.external)
        store.add_named_data("etcuda/program", b"\1", alignment=1, external_tag=recipe.external)
        blob = build_blob(recipe, compile_specs[0].value.decode())
        return PreprocessResult(processed_bytes=blob, data_store_output=store.get_named_data_store_output())


class Everything(Partitioner):
    """Claims the whole graph for the fake delegate."""

    def __init__(self, method: str) -> None:
        self.delegation = DelegationSpec("EtcudaBackend", [CompileSpec("method", method.encode())])

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        for node in exported_program.graph.nodes:
            if node.op == "call_function":
                node.meta["delegation_tag"] = "all"
        return PartitionResult(tagged_exported_program=exported_program, partition_tags={"all": self.delegation})


class Double(torch.nn.Module):
    """A graph with the fake image's signature."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


def write(recipe: Recipe) -> None:
    EtcudaBackend.recipe = recipe
    length = len(recipe.weight)
    shapes = ({0: Dim("n", min=1, max=length)},)
    exported = {name: export(Double(), (torch.ones(min(5, length)),), dynamic_shapes=shapes) for name in recipe.methods}
    partitioners = {name: [Everything(name)] for name in recipe.methods}
    program = to_edge_transform_and_lower(exported, partitioner=partitioners).to_executorch()
    path = pathlib.Path(recipe.path)
    path.write_bytes(program.buffer)
    if recipe.external:
        program.write_tensor_data_to_file(str(path.parent))


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # What libraries print must not mix with answers.
    for line in sys.stdin:
        write(Recipe(**json.loads(line)))
        os.write(answers, b"written\n")


if __name__ == "__main__":
    main()
