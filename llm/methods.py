"""The methods of a program: ``prefill`` and ``decode``, and the constants that runners ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from etcuda.errors import CheckpointError
from etcuda.llm.bandwidth import CacheReads
from etcuda.llm.model import TextModel
from etcuda.llm.quantization import decode_bytes, stored_bytes
from etcuda.llm.step import StepModel
from etcuda.llm.verify import VerifyModel, check_rows


def export_methods(
    model: TextModel, chunk: int, hint: int, device_sampling: bool = False, max_seq_len: int = 0, verify_rows: int = 0
) -> dict[str, ExportedProgram]:
    """Traces a model.

    Args:
        model: in evaluation mode; its caches are emptied, so that programs start from zeros.
        chunk: most tokens of one call of ``prefill``, 2 or more.
        hint: tokens of a typical call, which code generation chooses for.
        device_sampling: add ``generate_step``.
        max_seq_len: tokens that the caches hold, for ``generate_step``.
        verify_rows: add ``verify`` for 2 to so many tokens; 0 for none.

    Returns:
        ``prefill`` for 2 to ``chunk`` tokens, ``decode`` for one, ``generate_step``, see ``StepModel``, and ``verify``,
        which is ``prefill`` of few tokens with the logits of each.

    Raises:
        CheckpointError: the model's Python cannot be traced.
    """
    if device_sampling and model.cache.history is None:
        model.cache.keep_history(max_seq_len)
    model.reset()
    length = Dim("length", min=2, max=chunk)
    example = max(2, min(hint, chunk))
    several = (torch.zeros(1, example, dtype=torch.long), torch.arange(example))
    one = (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    shapes: Any = {"tokens": {1: length}, "positions": {0: length}}
    traced: list[tuple[str, TextModel, tuple[Tensor, ...], Any]] = [
        ("prefill", model, several, shapes),
        ("decode", model, one, None),
    ]
    if device_sampling:
        step = StepModel(model).eval()
        traced.append(("generate_step", step, step.example(), None))
    if verify_rows:
        check_rows(verify_rows, chunk)
        rows = Dim("rows", min=2, max=verify_rows) if verify_rows > 2 else None
        few = (torch.zeros(1, verify_rows, dtype=torch.long), torch.arange(verify_rows))
        shapes = None if rows is None else {"tokens": {1: rows}, "positions": {0: rows}}
        traced.append(("verify", VerifyModel(model, verify_rows).eval(), few, shapes))
    methods = {}
    for name, module, inputs, dynamic in traced:
        try:
            with torch.no_grad():
                methods[name] = torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{type(model.model).__name__}: expected a model that torch.export traces, got, in {name}: "
                f"{type(error).__name__}: {error}"
            ) from error
    return methods


def constants(
    model: TextModel, config: Any, generation: dict[str, Any], max_seq_len: int, chunk: int
) -> dict[str, Any]:
    """Constant methods: those that ExecuTorch's runners expect, and ours.

    Ours are ``get_weight_bytes``, ``get_decode_weight_bytes`` (those that a token reads), ``get_cache_bytes``,
    ``get_cache_reads`` (see ``CacheReads``), and, where a cache is a ring, ``get_max_rollback``: by how many tokens a
    sequence can be taken back, for older keys are overwritten; 0 where a state is recurrent. Where several recurrent
    states are kept, ``get_state_slots`` says how many: behind calls of one token and of ``verify`` a sequence can be
    taken back by one less, to the end of the last call of ``prefill`` at most. ``export`` adds ``get_bandwidth_mbs`` of
    the GPU that it is for.

    Args:
        model: that is exported.
        config: of the model.
        generation: of ``generation_config.json``, empty where there is none.
        max_seq_len: tokens that the caches hold.
        chunk: most tokens of one call of ``prefill``.
    """
    bos = token_ids("bos_token_id", generation, config)
    ends = token_ids("eos_token_id", generation, config)
    itemsize = model.model.dtype.itemsize
    recurrent = sum(each.traffic(itemsize) for each in model.cache.recurrent.layers)
    named = {
        "get_max_seq_len": chunk,
        "get_max_context_len": max_seq_len,
        "get_vocab_size": config.vocab_size,
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
        "get_weight_bytes": sum(stored_bytes(weight) for weight in model.parameters()),
        "get_decode_weight_bytes": decode_bytes(model.model),
        "get_cache_bytes": sum(buffer.nbytes for buffer in model.cache.buffers()),
        "get_cache_reads": CacheReads.of(model.cache.layers, itemsize, recurrent).numbers(),
    }
    if any(each.is_ring for each in model.cache.layers):
        named["get_max_rollback"] = chunk - 1
    if model.cache.recurrent.layers:
        named["get_max_rollback"] = 0
        slots = model.cache.recurrent.layers[0].slots
        if slots > 1:
            named["get_state_slots"] = slots
    if bos:
        named["get_bos_id"] = bos[0]
    if ends:
        named["get_eos_ids"] = ends
    return named


def token_ids(name: str, generation: dict[str, Any], config: Any) -> list[int]:
    """Token ids of a field, of ``generation_config.json`` before ``config.json``; null counts as left out.

    Raises:
        CheckpointError: it holds something else.
    """
    given = generation.get(name)
    given = getattr(config, name, None) if given is None else given
    ids = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    wrong = [each for each in ids if type(each) is not int]
    if wrong:
        raise CheckpointError(
            f"{name}: expected a token id or a list of them, got {wrong[0]!r}. Correct generation_config.json or "
            "config.json."
        )
    # Small models have ids of large vocabularies, by default, and -1 stands for none: no model draws these.
    return [each for each in ids if 0 <= each < config.vocab_size]
