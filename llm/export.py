"""From a checkpoint to a program: reads the weights, traces the model, lowers and writes it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from etcuda.backend.worker.client import start_worker
from etcuda.errors import CheckpointError, FoldError
from etcuda.kernels.weights.tensor import CoalescedTensor
from etcuda.llm import experts, tokenizer
from etcuda.llm.assign import assign, to_dtype
from etcuda.llm.cache import LayerCache
from etcuda.llm.checkpoint import SafetensorsFolder, Weights, dtype_of, is_gguf, read_config
from etcuda.llm.convert_tokenizer import convert
from etcuda.llm.methods import constants, export_methods, token_ids
from etcuda.llm.model import TextModel, empty_model, fill_buffers, find_layers
from etcuda.llm.quantization import Plan, QuantOptions
from etcuda.llm.quantized_checkpoint import QuantizedFolder, read_scheme
from etcuda.llm.random_weights import RandomWeights
from etcuda.llm.straight_experts import StraightExperts
from etcuda.llm.verify import check_rollback, check_rows, state_slots
from etcuda.llm.weights_description import describe
from etcuda.options import CompileOptions
from etcuda.partitioner.lean import lean_export
from etcuda.passes.graph.recipes import is_deferred
from etcuda.scratch import TEMPORARY, scratch_folder
from etcuda.target import CudaTarget, resolve_target

# Hears the stage, and how many units of how many are done; 0 of 0 where that is not known.
Progress = Callable[[str, int, int], None]


log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How a checkpoint becomes a program.

    Attributes:
        target: as of ``CudaPartitioner``: ``"auto"``, ``"sm_90"``, ``"host"`` and so on.
        dtype: of weights, activations and caches: ``"auto"`` (the checkpoint's), ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        max_seq_len: tokens of prompt and answer together that the caches hold.
        shortens: whether ``max_seq_len`` is at most the model's positions; otherwise more than these are an error.
        chunk: most tokens of one call of ``prefill``; a longer prompt takes several.
        random_seed: seed of made-up weights, which the checkpoint's are not read for; ``None`` reads them.
        all_logits: ``prefill`` gives the logits of every token, for perplexities; otherwise of the last.
        device_sampling: add the method ``generate_step``, which samples on the device.
        verify_rows: add the method ``verify``, which checks drafts: 2 to 16 tokens at once; 0 for none. Recurrent
            layers keep as many states.
        rollback: tokens by which a session of a model with recurrent layers can be taken back, 0 to 15: such layers
            keep one state more. Other models' sessions need none.
        write_weights: write ``m.ptd``; otherwise ``m.weights.json``, which says how seeded weights are made.
        tokenizer_inside: put the tokenizer into the program; otherwise it lies beside it.
        quant: which weights are quantised; none by default.
        cache: of keys and values: ``"auto"`` (like activations), ``"bf16"``, ``"int8"``, ``"fp8"`` or ``"tq4"``.
        compile: options of the compiler.
    """

    target: str = "auto"
    dtype: str = "auto"
    max_seq_len: int = 4096
    chunk: int = 512
    random_seed: int | None = None
    all_logits: bool = False
    device_sampling: bool = False
    verify_rows: int = 0
    rollback: int = 0
    write_weights: bool = True
    tokenizer_inside: bool = False
    quant: QuantOptions = dataclasses.field(default_factory=QuantOptions)
    cache: str = "auto"
    compile: CompileOptions = dataclasses.field(default_factory=lambda: CompileOptions(weights="ptd"))
    shortens: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("max_seq_len", self.max_seq_len >= 4, "4 or more tokens", self.max_seq_len),
            ("chunk", self.chunk >= 2, "2 or more tokens", self.chunk),
            (
                "write_weights",
                self.write_weights or (self.random_seed is not None and self.compile.weights == "ptd"),
                "True, or a random_seed and weights that go to a .ptd file: seeded weights alone can be made elsewhere",
                self.write_weights,
            ),
            ("random_seed", self.random_seed is None or self.random_seed >= 0, "None, or 0 or more", self.random_seed),
        )
        for name, holds, expected, got in checks:
            if not holds:
                raise CheckpointError(f"{name}: expected {expected}, got {got!r}.")


@dataclasses.dataclass(frozen=True)
class ExportSummary:
    """What was exported.

    Attributes:
        files: that were written, the ``.pte`` last.
        architecture: ``model_type`` of the configuration.
        weight_bytes: of the model as it was lowered.
        decode_weight_bytes: of those, what one token reads.
        cache_bytes: of the caches of one session.
        max_seq_len: tokens that the caches hold.
        chunk: most tokens of one call of ``prefill``.
        seconds: from the call to the last file.
        no_tokenizer: why the program takes token ids alone; "" as a rule.
        left_out: operators that ExecuTorch runs on the CPU, by method, for etcuda took them not; none as a rule.
    """

    files: list[pathlib.Path]
    architecture: str
    weight_bytes: int
    decode_weight_bytes: int
    cache_bytes: int
    max_seq_len: int
    chunk: int
    seconds: float
    left_out: dict[str, tuple[str, ...]]
    no_tokenizer: str = ""


def export(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    options: ExportOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ExportSummary:
    """Exports a checkpoint: ``m.pte``, its weights ``m.ptd``, and its tokenizer, the folder ``m.tokenizer``.

    Args:
        checkpoint: a folder in the Hub's format, or a GGUF file, or the first of several.
        path: of the program, ``m.pte``.
        options: how.
        progress: hears of the stages ``weights`` (in bytes), ``trace``, ``lower`` and ``write``.

    Raises:
        CheckpointError: the checkpoint cannot be read, or its model not be made a program.
        EtcudaError: lowering or writing failed.
    """
    start = time.perf_counter()
    options = options or ExportOptions()
    check_rows(options.verify_rows, _chunk(options))
    check_rollback(options.rollback, _chunk(options))
    source, target = pathlib.Path(checkpoint), pathlib.Path(path)
    if target.suffix != ".pte":
        raise CheckpointError(f"{target}: expected the name of a program, such as m.pte, got {target.name!r}.")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target}: expected a folder to write it to, got none of the name {target.parent}.")
    from etcuda.backend.save import check_place

    check_place(target, options.write_weights and options.compile.weights == "ptd")
    tokenizer.check_place(target)
    resolve_target(options.target)
    config, options = configure(source, options)
    start_worker(options.compile)
    with scratch_folder(pathlib.Path(tempfile.gettempdir()), TEMPORARY) as scratch, lean_export():
        words = scratch if is_gguf(source) else source
        if is_gguf(source):
            from etcuda.llm.gguf_checkpoint import save_gguf_tokenizer

            save_gguf_tokenizer(source, words)
            missing = tokenizer.missing(words)
        else:
            missing = convert(source, scratch)
            words = source if (source / tokenizer.NAMES[0]).is_file() else scratch
        tokenizer.check(words, config.vocab_size)
        made = _export(source, words, target, config, options, progress, start)
        return dataclasses.replace(made, no_tokenizer=missing)


def _export(
    source: pathlib.Path,
    words: pathlib.Path,
    target: pathlib.Path,
    config: Any,
    options: ExportOptions,
    progress: Progress,
    start: float,
) -> ExportSummary:
    """The export of a checkpoint whose configuration is read; ``words`` is the folder of its tokenizer."""
    generation = {} if is_gguf(source) else _generation(source)
    for name in ("bos_token_id", "eos_token_id"):
        token_ids(name, generation, config)  # Refused before the weights are read.
    model, layers = load_model(
        source, config, options, lambda done, total: progress("weights", done, total), defer=True
    )
    slots = state_slots(options.verify_rows, options.rollback)
    text_model = TextModel(model, layers, options.all_logits, slots).eval()
    progress("trace", 0, 0)
    chunk = _chunk(options)
    methods = export_methods(
        text_model, chunk, chunk, options.device_sampling, options.max_seq_len, options.verify_rows
    )
    progress("lower", 0, 0)
    fixed = constants(text_model, config, generation, options.max_seq_len, chunk)
    if options.verify_rows:
        fixed["get_verify_rows"] = options.verify_rows
    if options.tokenizer_inside and (inside := tokenizer.read(words)):
        fixed["get_tokenizer_files"] = json.dumps(inside)
    device = resolve_target(options.target)
    if isinstance(device, CudaTarget):
        fixed["get_gpu_count"] = 1
    if isinstance(device, CudaTarget) and device.code_kind == "cubin":
        fixed["get_bandwidth_mbs"] = int(device.memory_bandwidth / 1e6)
    program = _lower(methods, fixed, options)
    check_left_out({method: program.exported_program(method) for method in program.methods})
    progress("write", 0, 0)
    from etcuda.backend.save import save_program

    files = save_program(program, target, describe=None if options.write_weights else describe)
    copied = []
    if options.tokenizer_inside:
        tokenizer.remove(target)
    else:
        copied = tokenizer.copy(words, target)
    return ExportSummary(
        files=[*copied, *files],
        architecture=config.model_type,
        weight_bytes=fixed["get_weight_bytes"],
        decode_weight_bytes=fixed["get_decode_weight_bytes"],
        cache_bytes=fixed["get_cache_bytes"],
        max_seq_len=options.max_seq_len,
        chunk=chunk,
        seconds=time.perf_counter() - start,
        left_out=left_out(program),
    )


def load_model(
    source: pathlib.Path,
    config: Any,
    options: ExportOptions,
    progress: Callable[[int, int], None],
    *,
    defer: bool = False,
) -> tuple[Any, list[LayerCache]]:
    """The model with its weights, and the caches that it needs. With ``defer`` weights that are seeded, or of a GGUF
    file, are made when they are hashed and written: the model can be exported, and not be run.

    Raises:
        CheckpointError: see ``export``.
    """
    dtype = dtype_of(config, options.dtype)
    model = empty_model(config, dtype)
    layers = find_layers(model, options.max_seq_len, _chunk(options), options.cache)
    plan = Plan(model, options.quant)
    fill_buffers(model)
    if is_gguf(source):
        from etcuda.llm.gguf_checkpoint import load_gguf_weights

        load_gguf_weights(model, source, options.quant.activation_dtype, defer)
        return model, layers
    if options.random_seed is not None:
        tied = set(model.get_expanded_tied_weights_keys(all_submodels=True))
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
        deviation = getattr(config, "initializer_range", None) or 0.02
        configs = {name: options.quant.config(wanted) for name, wanted in plan.formats.items()}
        seeded = RandomWeights(shapes, options.random_seed, deviation, dtype, configs, defer)
        assign(model, seeded, lambda tensor, name, module: tensor, progress)
        return model, layers

    def convert(tensor: Tensor, name: str, module: nn.Module) -> Tensor:
        if isinstance(tensor, CoalescedTensor) and is_mxfp4 and plan.formats.get(name) == "int4":
            tensor = tensor.dequantize()
        if type(tensor) is not Tensor:
            return tensor  # Quantised in the checkpoint.
        return plan.apply(to_dtype(tensor, name, dtype), name)

    folder, scheme = SafetensorsFolder(source), read_scheme(source)
    weights: Weights = folder
    is_mxfp4 = scheme is not None and scheme.method == "mxfp4"
    layout = experts.file_layout(model)
    if is_mxfp4 and layout is None:
        raise CheckpointError(
            f"{source}: quant_method 'mxfp4': expected the experts of GPT-OSS and its activation, got a "
            f"{type(model).__name__}. Export the checkpoint that it was made of, with --quant."
        )
    if scheme is not None and not is_mxfp4:
        weights = QuantizedFolder(folder, scheme, dtype, options.quant.activation_dtype)
    if layout is not None:
        weights = StraightExperts(weights, layout, dtype, options.quant.activation_dtype)
    assign(model, weights, convert, progress)
    return model, layers


def _check_gguf(source: pathlib.Path, options: ExportOptions) -> None:
    if options.quant.linear != "none" or options.quant.rules:
        raise CheckpointError(
            f"{source}: expected no quant for a GGUF file, whose tensors keep the formats that they have, got "
            f"{options.quant.linear!r} and {len(options.quant.rules)} rules. Leave them out."
        )
    if options.random_seed is not None:
        raise CheckpointError(f"{source}: expected a folder with config.json for random weights, got a GGUF file.")


def _chunk(options: ExportOptions) -> int:
    return min(options.chunk, options.max_seq_len)


def configure(source: pathlib.Path, options: ExportOptions) -> tuple[Any, ExportOptions]:
    """The configuration of a checkpoint, and the options, shortened to its positions if they say so.

    Raises:
        CheckpointError: there is none, or it does not go with the options.
    """
    if is_gguf(source):
        from etcuda.llm.gguf_checkpoint import read_gguf_config

        _check_gguf(source, options)
        config = read_gguf_config(source)
    else:
        config = read_config(source)
    most = getattr(config, "max_position_embeddings", None)
    if most is None or options.max_seq_len <= most:
        return config, options
    if not options.shortens:
        raise CheckpointError(
            f"max_seq_len: expected at most the {most} positions of the model, got {options.max_seq_len}. "
            f"Pass --max-seq-len {most} or less."
        )
    return config, dataclasses.replace(options, max_seq_len=most)


def _lower(methods: dict[str, Any], constant_methods: dict[str, Any], options: ExportOptions) -> Any:
    try:
        return _lower_once(methods, constant_methods, options, folds=True)
    except FoldError as error:
        log.warning("layers are lowered one by one, which takes longer: %s", error)
        return _lower_once(methods, constant_methods, options, folds=False)


def _lower_once(methods: dict[str, Any], constant_methods: dict[str, Any], options: ExportOptions, folds: bool) -> Any:
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from etcuda.partitioner.partitioner import CudaPartitioner

    edge = to_edge_transform_and_lower(
        methods,
        partitioner=[CudaPartitioner(target=options.target, options=options.compile, alone=True, folds=folds)],
        constant_methods=constant_methods,
        # The check runs each graph ten times, a third of what lowering takes here. What it looks for, operators
        # that no runtime has, the partitioner names.
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    return edge.to_executorch()


def left_out(program: Any) -> dict[str, tuple[str, ...]]:
    """Operators of an ``ExecutorchProgramManager`` that no backend took, by method; constant methods have none."""
    plans = program.executorch_program.execution_plan
    return {plan.name: tuple(f"{op.name}.{op.overload}" for op in plan.operators) for plan in plans if plan.operators}


def check_left_out(programs: dict[str, Any]) -> None:
    """Checks that no weight whose bytes are yet to be made is left to another backend, which would read them.

    Raises:
        CheckpointError: one is; all are named.
    """
    left = {
        str(fqn)
        for each in programs.values()
        for fqn in (
            *each.graph_signature.inputs_to_parameters.values(),
            *each.graph_signature.inputs_to_buffers.values(),
        )
        if is_deferred(each.state_dict.get(fqn))
    }
    if left:
        raise CheckpointError(
            f"{', '.join(sorted(left))}: expected etcuda to take every operator that reads seeded weights, got some "
            "that it left to another backend; the log of the partitioner says why. Export the checkpoint's weights."
        )


def _generation(source: pathlib.Path) -> dict[str, Any]:
    path = source / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, got: {error}. Copy the file again.") from error
    return read if isinstance(read, dict) else {}
