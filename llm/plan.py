"""What a model will take on a GPU and how fast it can be at most, without its weights and without an export."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import torch
from torch import nn

from etcuda.errors import CheckpointError
from etcuda.llm.cache import LayerCache, slots
from etcuda.llm.checkpoint import dtype_of, read_config
from etcuda.llm.export import ExportOptions
from etcuda.llm.model import empty_model, find_layers
from etcuda.llm.quantization import Plan, shares_of_experts
from etcuda.llm.quantized_checkpoint import Scheme, read_scheme
from etcuda.target import TARGETS, CudaTarget

_MOST = 1 << 28  # Tokens of a cache that are looked at.


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device, and the limit that its bandwidth sets.

    Attributes:
        architecture: ``model_type`` of the configuration.
        gpu: name of the device.
        weight_bytes: of all weights, in the formats that were asked for.
        decode_weight_bytes: of those that a decoded token reads.
        cache_bytes: of the caches of one session.
        activation_bytes: an estimate of what one chunk of ``prefill`` computes with.
        peak_bytes: weights, caches of the program's own state and of one session, and activations.
        device_bytes: memory of the device.
        fits_max_seq_len: most tokens of a cache that fits; 0 if the weights alone do not.
        limits: tokens a second that the bandwidth allows, by tokens in the cache.
    """

    architecture: str
    gpu: str
    weight_bytes: int
    decode_weight_bytes: int
    cache_bytes: int
    activation_bytes: int
    peak_bytes: int
    device_bytes: int
    fits_max_seq_len: int
    limits: dict[int, float]

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.peak_bytes <= self.device_bytes


def find_gpu(name: str) -> CudaTarget:
    """The GPU of a name such as ``"h200"`` or ``"sm_90"``.

    Raises:
        CheckpointError: none has that name.
    """
    known = {target.name.removeprefix("NVIDIA ").lower(): target for target in TARGETS.values()}
    found = (known | TARGETS).get(name.lower())
    if found is None:
        raise CheckpointError(f"gpu: expected one of {', '.join([*known, *TARGETS])}, got {name!r}.")
    return found


def plan(checkpoint: pathlib.Path, gpu: CudaTarget, options: ExportOptions) -> MemoryPlan:
    """Plans a checkpoint, of which ``config.json`` alone is read. Of one that AWQ or GPTQ quantised all linear layers
    but the head count as quantised.

    Args:
        checkpoint: a folder with ``config.json``.
        gpu: the device.
        options: as of the export; the target does not matter.

    Raises:
        CheckpointError: as of ``export``, but for what is wrong with the weights.
    """
    config = read_config(checkpoint)
    dtype = dtype_of(config, options.dtype)
    model = empty_model(config, dtype)
    chunk = min(options.chunk, options.max_seq_len)
    layers = find_layers(model, options.max_seq_len, chunk)
    sizes = _weight_sizes(model, options) | _quantised_sizes(model, read_scheme(checkpoint))
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    used = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    weights = sum(sizes.values())
    shares = shares_of_experts(model)
    read = sum(int(size * shares.get(key, 1.0)) for key, size in sizes.items() if key not in embeddings - used)
    caches = sum(each.nbytes(dtype.itemsize) for each in layers)
    activations = _activations(model, layers, chunk, dtype)
    peak = weights + 2 * caches + activations
    contexts = sorted({min(512, options.max_seq_len - 1), options.max_seq_len - 1})
    return MemoryPlan(
        architecture=config.model_type,
        gpu=gpu.name,
        weight_bytes=weights,
        decode_weight_bytes=read,
        cache_bytes=caches,
        activation_bytes=activations,
        peak_bytes=peak,
        device_bytes=gpu.total_memory,
        fits_max_seq_len=min(
            _fitting(layers, chunk, dtype.itemsize, gpu.total_memory - weights - activations),
            getattr(config, "max_position_embeddings", None) or _MOST,
        ),
        limits={n: gpu.memory_bandwidth / (read + _cache_read(layers, n, dtype.itemsize)) for n in contexts},
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


def _quantised_sizes(model: Any, scheme: Scheme | None) -> dict[int, int]:
    """Bytes of the weights that a checkpoint has quantised, by identity; none where its ``config.json`` tells none."""
    if scheme is None or scheme.method == "torchao":
        return {}
    inner = [module for name, module in model.named_modules() if _is_inner(name, module)]
    return {id(module.weight): scheme.stored_bytes(*module.weight.shape) for module in inner}


def _activations(model: Any, layers: list[LayerCache], chunk: int, dtype: torch.dtype) -> int:
    """The widest layer's inputs and outputs for one chunk: residual, its norm, both halves of a gate, their product."""
    hidden = model.config.hidden_size
    widest = max(
        (module.out_features for name, module in model.named_modules() if _is_inner(name, module)), default=hidden
    )
    heads = max((each.num_kv_heads * (each.head_dim + each.value_dim) for each in layers), default=0)
    return int(chunk * (3 * hidden + 3 * widest + heads) * dtype.itemsize)


def _is_inner(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not name.endswith("lm_head")


def _cache_read(layers: list[LayerCache], tokens: int, itemsize: int) -> int:
    """Bytes of keys and values that a token reads behind ``tokens`` others."""
    return sum(
        each.num_kv_heads
        * (each.head_dim + each.value_dim)
        * itemsize
        * (each.length if each.is_ring else min(tokens + 1, each.window or tokens + 1))
        for each in layers
    )


def _fitting(layers: list[LayerCache], chunk: int, itemsize: int, room: int) -> int:
    """Most tokens of a cache, in 256s, whose state and one session's fit in ``room`` bytes."""

    def needed(length: int) -> int:
        each_slot = [(each, slots(each.window, length, chunk)[0]) for each in layers]
        return 2 * sum(
            each.num_kv_heads * count * (each.head_dim + each.value_dim) * itemsize for each, count in each_slot
        )

    low, high = 0, _MOST // 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(256 * middle) <= room else (low, middle - 1)
    return 256 * low
