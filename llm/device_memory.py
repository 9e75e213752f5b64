"""Whether a GPU has room for a language model, said before its weights are loaded."""

from __future__ import annotations


def device_memory_problem(
    weight_bytes: int, cache_bytes: int, max_seq_len: int, free_bytes: int, total_bytes: int
) -> str | None:
    """What is wrong with loading a program into the memory that is free, a sentence; ``None`` if nothing is.

    ``<etcuda/llm/device_memory.h>`` says the same words.

    Args:
        weight_bytes: of the program.
        cache_bytes: of one session. They are there twice: in the program's own state too.
        max_seq_len: tokens that they hold.
        free_bytes: of the GPU.
        total_bytes: of the GPU.
    """
    wanted = weight_bytes + 2 * cache_bytes
    if wanted <= free_bytes or max_seq_len <= 0:
        return None
    per_token = 2 * cache_bytes / max_seq_len
    left = free_bytes - weight_bytes
    fits = int(left / per_token) if left > 0 and cache_bytes > 0 else 0
    return (
        f"expected {_gib(wanted)} GiB free on the GPU, for weights of {_gib(weight_bytes)} GiB and caches of "
        f"{_gib(2 * cache_bytes)} GiB for {max_seq_len} tokens, in the program and in a session, got "
        f"{_gib(free_bytes)} of {_gib(total_bytes)} GiB. "
    ) + (
        f"Export with --max-seq-len {fits} or less, or free its memory."
        if fits >= 4
        else "Quantise the weights to fewer bits, or take a GPU with more memory."
    )


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f}"
