"""A checkpoint in the Hub's format: a folder with ``config.json`` and safetensors files, read tensor by tensor."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Protocol

import torch
from torch import Tensor

from etcuda.errors import CheckpointError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Weights(Protocol):
    """Where weights come from, one at a time."""

    def names(self) -> list[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def read(self, name: str) -> Tensor:
        """A tensor, in the dtype that it is stored in."""


def read_config(folder: pathlib.Path) -> Any:
    """The configuration of a checkpoint, as transformers reads it; of its text model where it has others too.

    Raises:
        CheckpointError: there is none, or transformers does not know its architecture.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: expected a folder with config.json, got "
            f"{'a folder without it' if folder.is_dir() else 'no folder'}. Pass a checkpoint in the Hub's format, "
            "or a GGUF file."
        )
    try:
        model_type = json.loads(path.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected JSON with model_type, got: {type(error).__name__}: {error}. Copy the file again."
        ) from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        import transformers

        raise CheckpointError(
            f"{path}: model_type {model_type!r}: expected an architecture of transformers {transformers.__version__}, "
            f"got: {str(error).splitlines()[0]} Update transformers, or correct config.json."
        ) from error
    text_config = config.get_text_config(decoder=True)
    if text_config is not config:
        # The whole model's, whose text model this is.
        text_config.tie_word_embeddings = config.tie_word_embeddings
        text_config.dtype = text_config.dtype or config.dtype
    return text_config


class SafetensorsFolder:
    """The safetensors files of a checkpoint, mapped and not read.

    Args:
        folder: of the checkpoint: ``model.safetensors``, or an index and the files that it names.

    Raises:
        CheckpointError: there are none, one is missing, or one is damaged.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Any] = {}
        for path in _files(folder):
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path}: expected a safetensors file, got: {error}. Copy the checkpoint again."
                ) from error
            names: list[str] = list(file.keys())  # type: ignore[no-untyped-call]
            self._files |= dict.fromkeys(names, file)

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files)

    def metadata(self) -> dict[str, str]:
        """What the files say beside their tensors, all together."""
        found: dict[str, str] = {}
        for file in dict.fromkeys(self._files.values()):
            found |= file.metadata() or {}
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """A tensor, in the dtype that it is stored in."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise CheckpointError(
                f"{folder}: expected {SINGLE} or {INDEX}, got neither. Copy the weights there, convert them to "
                "safetensors, or pass --random for seeded weights."
            )
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: expected JSON with weight_map, got: {type(error).__name__}: {error}. Copy the file again."
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: expected the {len(names)} files that {INDEX} names, got none of the name "
            f"{', '.join(missing)}. Copy the checkpoint again."
        )
    return [folder / name for name in names]


def dtype_of(config: Any, wanted: str) -> torch.dtype:
    """The dtype to compute in.

    Args:
        config: of the checkpoint.
        wanted: ``"bf16"``, ``"fp16"``, ``"fp32"``, or ``"auto"`` for the checkpoint's own, bf16 where it names none.

    Raises:
        CheckpointError: another name.
    """
    known = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if wanted == "auto":
        own = getattr(config, "dtype", None)
        return next((dtype for dtype in known.values() if dtype == own), torch.bfloat16)
    if wanted not in known:
        raise CheckpointError(f"dtype: expected auto, {', '.join(known)}, got {wanted!r}.")
    return known[wanted]
