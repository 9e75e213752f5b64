"""What ExecuTorch calls for each delegated program: passes, compile, constants, blob."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
import triton
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
from executorch.exir.backend.compile_spec_schema import CompileSpec
from torch.export.exported_program import ExportedProgram

from etcuda.backend.blob import DTYPE_CODES, ImagePart, write_blob
from etcuda.backend.constants import (
    ConstantTable,
    collect_constants,
    constant_tensors,
    hash_weights,
    store_what_is_used_in_part,
)
from etcuda.backend.reroll import Parts, mark_edges, split_repeats
from etcuda.backend.schema.generated import delegate_generated as schema
from etcuda.backend.state import buffers_of, check_content, check_uses, name_state, outside_uses, state_names
from etcuda.backend.values import describe_values
from etcuda.backend.weight_bytes import StoredWeight, WeightBytes
from etcuda.backend.worker.client import compile_all
from etcuda.backend.worker.job import JobRequest, JobResult, tied_constants
from etcuda.errors import OptionError
from etcuda.options import BACKEND_ID, COMPILE_SPEC_KEY, BackendConfig
from etcuda.partitioner.lean import lean_export
from etcuda.partitioner.notes import notes_of
from etcuda.passes.graph.copy_graph import copy_graph
from etcuda.passes.graph.program_constants import mark_other_methods, mark_state
from etcuda.passes.manager import run_passes
from etcuda.passes.repeats.unfold import unfold

log = logging.getLogger(__name__)

_WEIGHT_ALIGNMENT = 64
_PROGRAM_KEY = "etcuda/program"


@dataclasses.dataclass
class _Prepared:
    """A delegated program after the passes, and everything about it that needs no compiler.

    ``parts``: what is compiled in place of the program, if it repeats.
    """

    method: str
    config: BackendConfig
    program: ExportedProgram
    constants: ConstantTable
    ignored_arguments: list[int]
    parts: Parts | None

    @property
    def requests(self) -> list[JobRequest]:
        """What is to be compiled."""
        if self.parts is None:
            return [JobRequest(self.program, self.config.target, self.config.options, tied_constants(self.constants))]
        return [
            JobRequest(each, self.config.target, self.config.options, {}, is_part=True) for each in self.parts.programs
        ]


class EtcudaBackend(BackendDetails):  # type: ignore[misc]
    """ExecuTorch's entry into etcuda. Its name is the backend id that the runtime registers."""

    @classmethod
    def copy_exported_program_for_preprocess(
        cls, edge_program: ExportedProgram, compile_specs: list[CompileSpec]
    ) -> ExportedProgram:
        """The program itself: ``preprocess`` copies the graph, and copying the weights would double the memory."""
        return edge_program

    @staticmethod
    def preprocess(edge_program: ExportedProgram, compile_specs: list[CompileSpec]) -> PreprocessResult:
        """Compiles one delegated program.

        Raises:
            OptionError: the compile specs are not CudaPartitioner's.
            UnsupportedGraphError, PassError, CompileError: see there.
        """
        return _preprocess_all([("forward", edge_program, compile_specs)])[0]

    @classmethod
    def preprocess_multimethod(
        cls,
        edge_programs: dict[str, list[ExportedProgram]],
        compile_specs: dict[str, list[list[CompileSpec]]],
    ) -> dict[str, list[PreprocessResult]]:
        """Compiles the delegated programs of all methods side by side.

        Raises:
            StateError: methods name a buffer that they cannot share.
            OptionError, UnsupportedGraphError, PassError, CompileError: as ``preprocess``.
        """
        flat = [
            (method, program, specs)
            for method, programs in edge_programs.items()
            for program, specs in zip(programs, compile_specs[method], strict=True)
        ]
        results = iter(_preprocess_all(flat))
        return {method: [next(results) for _ in programs] for method, programs in edge_programs.items()}


assert EtcudaBackend.__name__ == BACKEND_ID


@lean_export()
def _preprocess_all(jobs: list[tuple[str, ExportedProgram, list[CompileSpec]]]) -> list[PreprocessResult]:
    start, start_cpu = time.perf_counter(), time.process_time()
    jobs = [(method, _unfolded(program), specs) for method, program, specs in jobs]
    state = _shared_state(jobs)
    known: dict[int, WeightBytes] = {}
    several = len({method for method, _, _ in jobs}) > 1
    prepared = [_prepare(*job, names, known, several) for job, names in zip(jobs, state, strict=True)]
    check_content([(each.method, each.constants) for each in prepared])
    labels = _labels([each.method for each in prepared])
    requests = [each.requests for each in prepared]
    names = [_names_of_parts(label, len(each)) for label, each in zip(labels, requests, strict=True)]
    with _hashing([each.constants for each in prepared]):
        compiled = compile_all(list(itertools.chain(*requests)), list(itertools.chain(*names)))
    jobs_left = iter(compiled)
    results = [
        _result(each, list(itertools.islice(jobs_left, len(wanted))))
        for each, wanted in zip(prepared, requests, strict=True)
    ]
    if prepared:
        target = prepared[0].config.target
        seconds = time.perf_counter() - start
        cpu_seconds = time.process_time() - start_cpu + sum(job.cpu_seconds for job in compiled)
        cost = {
            "target": target if isinstance(target, str) else target.arch, "seconds": seconds, "cpu_seconds": cpu_seconds
        }  # fmt: skip
        what = "%s for %s: %.1f s, %.1f s of processor time"
        log.info(what, ", ".join(labels), cost["target"], seconds, cpu_seconds, extra={"export_cost": cost})
    return results


@contextlib.contextmanager
def _hashing(tables: list[ConstantTable]) -> Iterator[None]:
    """Hashes weights beside what is done inside, and waits for it."""
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1, "etcuda: hashing") as pool:
        hashed = pool.submit(hash_weights, tables, stop)
        try:
            yield
            hashed.result()
        finally:
            stop.set()


def _unfolded(program: ExportedProgram) -> ExportedProgram:
    """A delegated program with the repetitions that the partitioner took out of its method."""
    notes = notes_of(program)
    return program if notes is None or notes.folded is None else unfold(program, notes.folded)


def _shared_state(jobs: list[tuple[str, ExportedProgram, list[CompileSpec]]]) -> list[dict[str, str]]:
    """For each delegated program, which of its constants are state, by the name that all methods share it by."""
    uses = []
    for method, program, specs in jobs:
        config = _config(specs)
        uses += buffers_of(method, program, "the host" if config.is_host else "the GPU")
        notes = notes_of(program)
        uses += outside_uses(method, notes.outside if notes else {})
    check_uses(list(dict.fromkeys(uses)))
    return name_state([program for _, program, _ in jobs], state_names(uses))


def _labels(methods: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    labels = []
    for method in methods:
        index = seen[method] = seen.get(method, -1) + 1
        labels.append(f"{method}/{index}" if methods.count(method) > 1 else method)
    return labels


def _names_of_parts(label: str, count: int) -> list[str]:
    return [label] if count == 1 else [f"{label}, part {index + 1} of {count}" for index in range(count)]


def _prepare(
    method: str,
    edge_program: ExportedProgram,
    compile_specs: list[CompileSpec],
    state: dict[str, str],
    known: dict[int, WeightBytes] | None = None,
    several: bool = False,
) -> _Prepared:
    config = _config(compile_specs)
    program = copy_graph(edge_program)
    mark_state(program, state.keys())
    if several:
        mark_other_methods(program)
    arguments = program.graph_signature.user_inputs
    run_passes(program, config)
    _drop_unused(program)
    kept = set(program.graph_signature.user_inputs)
    ignored = [place for place, name in enumerate(arguments) if name not in kept]
    parts = split_repeats(program) if config.options.reroll else None
    if not config.options.reroll:
        mark_edges(program)
    return _Prepared(method, config, program, collect_constants(program, state, known, weights=False), ignored, parts)


def _config(compile_specs: list[CompileSpec]) -> BackendConfig:
    keys = [spec.key for spec in compile_specs]
    if keys != [COMPILE_SPEC_KEY]:
        raise OptionError(
            f"compile specs: expected exactly one, {COMPILE_SPEC_KEY!r}, got {keys}. "
            "Lower with CudaPartitioner instead of writing compile specs by hand."
        )
    return BackendConfig.from_bytes(bytes(compile_specs[0].value))


def _drop_unused(program: ExportedProgram) -> None:
    """Forgets state and constants that the graph does not take as inputs, so that they are not serialised."""
    used = constant_tensors(program).keys()
    for table in (program.state_dict, program.constants):
        for name in [name for name in table if name not in used]:
            del table[name]


def _result(prepared: _Prepared, compiled: list[JobResult]) -> PreprocessResult:
    config = prepared.config
    delegate = schema.DelegateT()
    delegate.method = prepared.method
    values = describe_values(prepared.program, [text for each in compiled for text in each.assumptions])
    delegate.inputs, delegate.outputs = values.inputs, values.outputs
    delegate.sizes, delegate.conditions = values.sizes, values.conditions
    if prepared.parts is None:
        bound = compiled[0].constants
    else:
        bound = _describe_steps(delegate, prepared.program, prepared.parts)
    used = _describe_constants(delegate, prepared.constants, bound)
    delegate.ignoredArguments = prepared.ignored_arguments
    delegate.producers = _producers()
    delegate.graphCapturable = not config.is_host and _is_static(prepared.program, delegate)
    delegate.allowTf32 = config.options.allow_tf32
    store = NamedDataStore()
    tag = config.options.external_tag
    names = {each.storage_index: fqn for fqn, each in prepared.constants.constants.items()}
    for index in used:
        entry = prepared.constants.storages[index]
        if entry.sha256 is not None:
            # The initial content of state is what it is now: a call of the model may write to it.
            data = entry.content.read() if entry.is_mutable else StoredWeight(entry.content, names[index])
            store.add_named_data(weight_key(entry.sha256), data, _WEIGHT_ALIGNMENT, tag)
    if any(prepared.constants.storages[index].is_mutable for index in used):
        store.add_named_data(_PROGRAM_KEY, b"\1", 1, tag)
    images = [_image(config, part, index) for index, part in enumerate(compiled)]
    blob = write_blob(delegate, images)
    what = "method %s: %d kernels in %d parts, images of %d bytes"
    kernels, nbytes = sum(each.num_kernels for each in images), sum(len(each.data) for each in images)
    log.info(what, prepared.method, kernels, len(images), nbytes)
    return PreprocessResult(
        processed_bytes=blob, debug_handle_map={}, data_store_output=store.get_named_data_store_output()
    )


def _describe_steps(delegate: schema.DelegateT, program: ExportedProgram, parts: Parts) -> list[tuple[str, str]]:
    """Fills in the steps; returns (name, fully qualified name) of the constants that they use, in their order."""
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    named |= signature.inputs_to_lifted_tensor_constants
    read = {node.name: node for step in parts.steps for node in step.inputs}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    constants = [name for name in named if name in read]
    order = [*(str(name) for name in signature.user_inputs), *constants]
    numbers = {nodes[name]: index for index, name in enumerate(order)}
    steps, delegate.results = parts.numbered(numbers, len(order))
    delegate.steps = []
    for part, inputs, outputs in steps:
        record = schema.StepT()
        record.part, record.inputs, record.outputs = part, inputs, outputs
        delegate.steps.append(record)
    return [(name, named[name]) for name in constants]


def _is_static(program: ExportedProgram, delegate: schema.DelegateT) -> bool:
    """Whether a call always launches the same kernels on the same shapes: no symbolic size and no control flow."""
    dims = [dim for value in (*delegate.inputs, *delegate.outputs) for dim in value.dims]
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    has_branch = any(isinstance(target, torch._ops.HigherOrderOperator) for target in operators)
    return not has_branch and all(dim.min == dim.max for dim in dims)


def weight_key(sha256: bytes) -> str:
    """The named-data key of a weight, from the digest of its bytes."""
    return f"etcuda/w/{sha256.hex()}"


def _describe_constants(
    delegate: schema.DelegateT, table: ConstantTable, constants: list[tuple[str, str]]
) -> list[int]:
    """Fills in the constants that the code uses; returns the indices of their storages in ``table``."""
    used = sorted({table.constants[fqn].storage_index for _, fqn in constants})
    position = {index: place for place, index in enumerate(used)}
    store_what_is_used_in_part(table, [fqn for _, fqn in constants])
    delegate.storages = []
    for index in used:
        entry = table.storages[index]
        record = schema.StorageT()
        record.nbytes = entry.nbytes
        record.dataKey = weight_key(entry.sha256) if entry.sha256 is not None else None
        record.sha256 = list(entry.sha256) if entry.sha256 is not None else None
        record.isMutable = entry.is_mutable
        record.stateName = entry.state_name
        delegate.storages.append(record)
    delegate.constants = []
    for name, fqn in constants:
        constant = table.constants[fqn]
        bound = schema.ConstantT()
        bound.name = name
        bound.fqn = fqn
        bound.storage = position[constant.storage_index]
        bound.dtype = DTYPE_CODES[constant.dtype]
        bound.sizes = list(constant.sizes)
        bound.strides = list(constant.strides)
        bound.storageOffset = constant.storage_offset
        delegate.constants.append(bound)
    return used


def _image(config: BackendConfig, compiled: JobResult, part: int) -> ImagePart:
    target = config.target
    code = (compiled.image, compiled.num_kernels, part)
    if isinstance(target, str):
        return ImagePart(target, False, 0, "native", config.options.host_isa, *code)
    wanted = {name: found["shared_bytes"] for name, found in compiled.resources.items()}
    largest = max(wanted, key=lambda name: (wanted[name], name), default="")
    needs = (wanted.get(largest, 0), largest)
    return ImagePart(target.arch, True, target.compute_capability, target.code_kind, "x86-64", *code, *needs)


def _producers() -> list[Any]:
    from etcuda import __version__

    versions = {
        "etcuda": __version__,
        "executorch": importlib.metadata.version("executorch"),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    records = []
    for key, value in versions.items():
        record = schema.KeyValueT()
        record.key, record.value = key, value
        records.append(record)
    return records
