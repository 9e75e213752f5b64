"""Checkpoints whose tokenizer is in older files than ``tokenizer.json``: transformers converts it."""

from __future__ import annotations

import pathlib

from etcuda.llm.tokenizer import NAMES, missing

# Vocabularies of SentencePiece, of GPT-2's kind and of BERT's.
_OLDER = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def convert(checkpoint: pathlib.Path, folder: pathlib.Path) -> str:
    """Writes a checkpoint's tokenizer into ``folder`` in the form that is read, if it has one in an older form alone.

    Returns:
        Why there is none; "" if there is one, in ``folder`` or in ``checkpoint``.
    """
    why = missing(checkpoint)
    older = [name for name in _OLDER if (checkpoint / name).is_file()]
    if not why or not older:
        return why
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
        made.save_pretrained(folder)
    except Exception as error:  # The file's format decides which package reads it, and what that raises.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return f"expected {older[0]} to be converted by transformers, got {reason}; prompts and answers are token ids"
    if not (folder / NAMES[0]).is_file():
        return (
            f"expected {older[0]} to become {NAMES[0]}, got a {type(made).__name__}, which has no such form; prompts "
            "and answers are token ids"
        )
    return ""
