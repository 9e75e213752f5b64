"""What passes between the user's process and the compile worker: one folder per job."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import pathlib
from typing import Any, Literal

import torch
from torch._export.verifier import Verifier
from torch.export.exported_program import ExportedProgram

from etcuda.backend.constants import ConstantTable
from etcuda.backend.worker.loading import loaded_with_sizes
from etcuda.errors import BlobError
from etcuda.options import CompileOptions
from etcuda.target import CudaTarget
from etcuda.torch_private import example_sizes

PROGRAM, REQUEST, _RESULT, _IMAGE = "program.pt2", "request.json", "result.json", "image.so"

# Lines of the user's, modules, earlier graphs: they differ between processes.
_ORIGIN = ("from_node", "nn_module_stack", "stack_trace")

# Operators that the worker does not know from the start, for importing torchao takes seconds.
_DEFINED_IN = {"torchao": "torchao.quantization.quant_primitives"}


def _environment() -> dict[str, str]:
    found = {"CXX": os.environ.get("CXX"), "PATH": os.environ.get("PATH")}
    return {name: value for name, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """A graph to compile.

    Attributes:
        program: the graph.
        target: what to compile it for.
        options: how.
        tied: a constant's name, and the name of an equal view of the same bytes.
        environment: variables that decide which C++ compiler runs, as they are now: the worker may have started before.
        is_part: other parts of the program read the outputs, so their strides must be those of the graph.
    """

    program: ExportedProgram
    target: CudaTarget | Literal["host"]
    options: CompileOptions
    tied: dict[str, str]
    environment: dict[str, str] = dataclasses.field(default_factory=_environment)
    is_part: bool = False


@dataclasses.dataclass(frozen=True)
class JobResult:
    """A compiled graph.

    Attributes:
        image: the code image.
        constants: (name in the image, fully qualified name), in the image's order.
        num_kernels: kernels in the image.
        resources: for each kernel of a GPU, what a block takes: see ``KernelResources``.
        assumptions: what the code takes for granted of the sizes of inputs, as ``sympy.srepr`` writes expressions.
        cpu_seconds: processor time that compiling took, of all processes together.
    """

    image: bytes
    constants: list[tuple[str, str]]
    num_kernels: int
    resources: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    assumptions: list[str] = dataclasses.field(default_factory=list)
    cpu_seconds: float = 0.0

    def described(self) -> dict[str, Any]:
        """All but the image and what compiling took, as JSON has it."""
        return {
            "constants": self.constants,
            "num_kernels": self.num_kernels,
            "resources": self.resources,
            "assumptions": self.assumptions,
        }

    @classmethod
    def of(cls, image: bytes, value: dict[str, Any]) -> JobResult:
        """From an image and what ``described`` gave."""
        constants = [(name, fqn) for name, fqn in value["constants"]]
        return cls(image, constants, value["num_kernels"], value["resources"], value["assumptions"])


def tied_constants(table: ConstantTable) -> dict[str, str]:
    """Constants that are the very same view of the same bytes as an earlier one."""
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for fqn, entry in table.constants.items():
        key = (entry.storage_index, entry.dtype, entry.sizes, entry.strides, entry.storage_offset)
        if key in first:
            tied[fqn] = first[key]
        first.setdefault(key, fqn)
    return tied


def write_request(folder: pathlib.Path, request: JobRequest) -> None:
    """Writes a job. Constants travel as shapes only, and what nodes came from does not matter any more."""
    for module in request.program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in _ORIGIN:
                node.meta.pop(key, None)
    stored = io.BytesIO()
    torch.export.save(_without_bytes(request.program), stored)
    (folder / PROGRAM).write_bytes(stored.getvalue())
    target = request.target if isinstance(request.target, str) else dataclasses.asdict(request.target)
    value = {
        "target": target,
        "options": dataclasses.asdict(request.options),
        "tied": request.tied,
        "environment": request.environment,
        "is_part": request.is_part,
        "imports": _imports(request.program),
        "sizes": {str(symbol): size for symbol, size in example_sizes(_inputs(request.program)).items()},
    }
    (folder / REQUEST).write_text(json.dumps(value))


def read_request(folder: pathlib.Path) -> JobRequest:
    """Reads what ``write_request`` wrote."""
    value = json.loads((folder / REQUEST).read_text())
    target = value["target"]
    for module in value["imports"]:
        importlib.import_module(module)
    with loaded_with_sizes(value["sizes"]):
        program = torch.export.load(folder / PROGRAM)
    return JobRequest(
        program=program,
        target="host" if target == "host" else CudaTarget(**target),
        options=CompileOptions.from_mapping(value["options"]),
        tied=value["tied"],
        environment=value["environment"],
        is_part=value["is_part"],
    )


def write_result(folder: pathlib.Path, result: JobResult) -> None:
    """Writes a finished job."""
    (folder / _IMAGE).write_bytes(result.image)
    (folder / _RESULT).write_text(json.dumps(result.described()))


def read_result(folder: pathlib.Path) -> JobResult:
    """Reads what ``write_result`` wrote.

    Raises:
        BlobError: the worker left no complete result.
    """
    try:
        value = json.loads((folder / _RESULT).read_text())
        image = (folder / _IMAGE).read_bytes()
    except (OSError, ValueError) as error:
        raise BlobError(f"the compile worker left no complete result in {folder} ({error}); export again.") from error
    return JobResult.of(image, value)


def _inputs(program: ExportedProgram) -> list[object]:
    return [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]


def _imports(program: ExportedProgram) -> list[str]:
    """Modules that define operators of the program and how they decompose."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    targets = [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]
    namespaces = {op.namespace for op in targets if isinstance(op, torch._ops.OpOverload)}
    return sorted(module for namespace, module in _DEFINED_IN.items() if namespace in namespaces)


def _without_bytes(program: ExportedProgram) -> ExportedProgram:
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=program.graph_signature,
        state_dict={name: _shape_only(value) for name, value in program.state_dict.items()},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=None,
        constants={name: _shape_only(value) for name, value in program.constants.items()},
        verifiers=[Verifier],
    )


def _shape_only(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    empty = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    return torch.nn.Parameter(empty, requires_grad=False) if isinstance(value, torch.nn.Parameter) else empty
