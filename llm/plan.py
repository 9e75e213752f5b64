"""What a model will take on a GPU and how fast it can be at most, without its weights and without an export."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import torch
from torch import nn

from etcuda.errors import CheckpointError
from etcuda.llm.bandwidth import CacheReads, token_limit
from etcuda.llm.cache import LayerCache, slots
from etcuda.llm.checkpoint import dtype_of, is_gguf
from etcuda.llm.experts import WEIGHTS, is_mixture, top_k
from etcuda.llm.export import ExportOptions, configure, load_model
from etcuda.llm.model import empty_model, find_layers, find_recurrent
from etcuda.llm.quantization import Plan, shares_of_experts, stored_bytes
from etcuda.llm.quantized_checkpoint import Scheme, read_scheme
from etcuda.llm.verify import check_rollback, check_rows, state_slots
from etcuda.target import TARGETS, CudaTarget

_MOST = 1 << 28  # Tokens of a cache that are looked at.
# What a method's products of unquantised weights take at most beside their outputs.
_LIBRARY_BYTES = 32 << 20
# Sums of a product of quantised weights that its thread blocks leave to each other: two tiles each, in fp32.
_TILE_BYTES = 2 * 128 * 256 * 4
# Graphs keep what the largest call computes with, beside which a call of another size runs; fitted to one program of
# six layers on an H200, and within 2% of what one of 31 billion weights took there.
_CALLS = 2.5
# Of a token's logits, with what is made of them until one is drawn.
_LOGIT_BYTES = 64
# The driver's context, kernels and graphs: an estimate; 360 to 540 MiB were seen on an H200 with CUDA 13.
DRIVER_BYTES = 600 << 20


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device, and the limit that its bandwidth sets.

    Attributes:
        architecture: ``model_type`` of the configuration.
        gpu: name of the device.
        weight_bytes: of all weights, in the formats that were asked for.
        decode_weight_bytes: of those that a decoded token reads.
        max_seq_len: tokens that the caches hold.
        cache_bytes: of the caches of one session.
        checkpoint_bytes: of these, what recurrent layers keep to be taken back, beside the last token's state.
        activation_bytes: an estimate of what calls compute with.
        peak_bytes: weights, caches of the program's own state and of one session, and activations: what ``etcuda
            bench`` measures as its peak.
        driver_bytes: an estimate of what the driver takes beside that.
        device_bytes: memory of the device.
        fits_max_seq_len: most tokens of a cache that fits; 0 if the weights alone do not.
        limits: tokens a second that the bandwidth allows, by tokens in the cache.
    """

    architecture: str
    gpu: str
    weight_bytes: int
    decode_weight_bytes: int
    max_seq_len: int
    cache_bytes: int
    checkpoint_bytes: int
    activation_bytes: int
    peak_bytes: int
    driver_bytes: int
    device_bytes: int
    fits_max_seq_len: int
    limits: dict[int, float]

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.peak_bytes + self.driver_bytes <= self.device_bytes


def find_gpu(name: str) -> CudaTarget:
    """The GPU of a name such as ``"h200"``, ``"NVIDIA H200"`` or ``"sm_90"``.

    Raises:
        CheckpointError: none has that name.
    """
    known = {target.name.removeprefix("NVIDIA ").lower(): target for target in TARGETS.values()}
    found = (known | TARGETS).get(name.strip().lower().removeprefix("nvidia "))
    if found is None:
        raise CheckpointError(f"gpu: expected one of {', '.join([*known, *TARGETS])}, got {name!r}.")
    return found


def plan(checkpoint: pathlib.Path, gpu: CudaTarget, options: ExportOptions) -> MemoryPlan:
    """Plans a checkpoint, of which ``config.json`` alone is read. Of one that AWQ or GPTQ quantised all linear layers
    but the head count as quantised. Of a GGUF file the list of tensors is read.

    Args:
        checkpoint: a folder with ``config.json``, or a GGUF file.
        gpu: the device.
        options: as of the export; the target does not matter.

    Raises:
        CheckpointError: as of ``export``, but for what is wrong with the weights.
    """
    config, options = configure(checkpoint, options)
    dtype = dtype_of(config, options.dtype)
    chunk = min(options.chunk, options.max_seq_len)
    check_rows(options.verify_rows, chunk)
    check_rollback(options.rollback, chunk)
    if is_gguf(checkpoint):
        model, layers = load_model(checkpoint, config, options, lambda done, total: None, defer=True)
        sizes = {id(weight): stored_bytes(weight) for weight in model.parameters()}
    else:
        model = empty_model(config, dtype)
        layers = find_layers(model, options.max_seq_len, chunk, options.cache)
        sizes = _weight_sizes(model, options)
        formats = Plan(model, options.quant).formats
        int4 = {id(model.get_parameter(name)) for name, kind in formats.items() if kind == "int4"}
        sizes |= _quantised_sizes(model, read_scheme(checkpoint), int4)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    used = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    weights = sum(sizes.values())
    shares = shares_of_experts(model)
    read = sum(int(size * shares.get(key, 1.0)) for key, size in sizes.items() if key not in embeddings - used)
    states = find_recurrent(model, state_slots(options.verify_rows, options.rollback))
    recurrent = sum(each.nbytes(dtype.itemsize) for each in states)
    traffic = sum(each.traffic(dtype.itemsize) for each in states)
    caches = sum(each.nbytes(dtype.itemsize) for each in layers) + recurrent
    reads = CacheReads.of(layers, dtype.itemsize, traffic)
    has_dense, has_quantised = _kinds(model, sizes)
    call = _activations(model, layers, chunk, dtype) + _TILE_BYTES * gpu.num_sms * has_quantised
    activations = int(_CALLS * call) + _LIBRARY_BYTES * has_dense + _LOGIT_BYTES * config.vocab_size
    peak = weights + 2 * caches + activations
    contexts = sorted({min(512, options.max_seq_len - 1), options.max_seq_len - 1})
    return MemoryPlan(
        architecture=config.model_type,
        gpu=gpu.name,
        weight_bytes=weights,
        decode_weight_bytes=read,
        max_seq_len=options.max_seq_len,
        cache_bytes=caches,
        checkpoint_bytes=recurrent - traffic // 2,
        activation_bytes=activations,
        peak_bytes=peak,
        driver_bytes=DRIVER_BYTES,
        device_bytes=gpu.total_memory,
        fits_max_seq_len=min(
            _fitting(
                layers, chunk, dtype.itemsize, gpu.total_memory - weights - activations - DRIVER_BYTES - 2 * recurrent
            ),
            getattr(config, "max_position_embeddings", None) or _MOST,
        ),
        limits={n: token_limit(gpu.memory_bandwidth, read, reads, n) for n in contexts},
    )


def _weight_sizes(model: Any, options: ExportOptions) -> dict[int, int]:
    """Bytes of each weight as it will be stored, by its identity."""
    formats = Plan(model, options.quant).formats
    sizes: dict[int, int] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        wanted = formats.get(name)
        if wanted is not None:
            components = options.quant.config(wanted).format(weight.shape[-1]).components(*weight.shape)
            sizes[id(weight)] = sum(math.prod(shape) * kind.itemsize for shape, kind in components.values())
        else:
            sizes.setdefault(id(weight), weight.nbytes)
    return sizes


def _quantised_sizes(model: Any, scheme: Scheme | None, int4: set[int]) -> dict[int, int]:
    """Bytes of the weights that a checkpoint has quantised, by identity; none where its ``config.json`` tells none.
    Experts of MXFP4 become int8, or ``int4`` if they are among those."""
    if scheme is None or scheme.method == "torchao":
        return {}
    if scheme.method == "mxfp4":
        # Integers of a byte and a float16 for 32 of them, unless they are quantised anew.
        stacked = [getattr(module, name) for module in model.modules() if is_mixture(module) for name in WEIGHTS]
        return {id(each): each.numel() + each.numel() // 16 for each in stacked if id(each) not in int4}
    inner = [module for name, module in model.named_modules() if _is_inner(name, module)]
    return {id(module.weight): scheme.stored_bytes(*module.weight.shape) for module in inner}


def _kinds(model: Any, sizes: dict[int, int]) -> tuple[bool, bool]:
    """Whether weights are there that are not quantised, and ones that are; of linear layers other than the head, which
    has one row, and experts."""
    inner = [module.weight for name, module in model.named_modules() if _is_inner(name, module)]
    dense = [sizes[id(weight)] == weight.nbytes for weight in inner]
    return bool(shares_of_experts(model)) or any(dense), not all(dense)


def _activations(model: Any, layers: list[LayerCache], chunk: int, dtype: torch.dtype) -> int:
    """The widest layer's inputs and outputs for one chunk: residual, its norm, both halves of a gate, their product; of
    experts those of each that a token is given to."""
    hidden = model.config.hidden_size
    widest = max(
        (module.out_features for name, module in model.named_modules() if _is_inner(name, module)), default=hidden
    )
    # Coded caches are decoded for a chunk, a layer at a time.
    decoded = max(
        (each.num_kv_heads * each.length * (each.head_dim + each.value_dim) for each in layers if each.format),
        default=0,
    )
    experts = [
        module for module in model.modules() if hasattr(module, "gate_up_proj") and hasattr(module, "num_experts")
    ]
    if experts:
        both = max(max(module.gate_up_proj.shape[1:]) for module in experts)
        widest = max(widest, (both + both // 2) * top_k(model.config) // 3)
    heads = max((each.num_kv_heads * (each.head_dim + each.value_dim) for each in layers), default=0)
    return int((chunk * (3 * hidden + 3 * widest + heads) + decoded) * dtype.itemsize)


def _is_inner(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not name.endswith("lm_head")


def _fitting(layers: list[LayerCache], chunk: int, itemsize: int, room: int) -> int:
    """Most tokens of a cache, in 256s, whose state and one session's fit in ``room`` bytes."""

    def needed(length: int) -> int:
        each_slot = [(each, slots(each.window, length, chunk)[0]) for each in layers]
        return 2 * sum(count * each.slot_bytes(itemsize) for each, count in each_slot)

    low, high = 0, _MOST // 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(256 * middle) <= room else (low, middle - 1)
    return 256 * low
