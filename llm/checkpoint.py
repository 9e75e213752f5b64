"""A checkpoint in the Hub's format: a folder with ``config.json`` and safetensors files, read tensor by tensor."""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any, Protocol

import torch
from torch import Tensor

from etcuda.errors import CheckpointError

_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings",
)  # fmt: skip
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
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        got = "a folder without it" if folder.is_dir() else "a file" if folder.exists() else "no folder"
        raise CheckpointError(f"{folder}: expected a folder with config.json, got {got}. {_advice(folder)}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model_type = raw["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected JSON with model_type, got: {type(error).__name__}: {error}. Copy the file again."
        ) from error
    _check_sizes(raw, path)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except StrictDataclassError as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: expected a configuration that transformers takes, got: {said} Correct config.json."
        ) from error
    except (ValueError, KeyError, TypeError, OSError, AttributeError, ArithmeticError) as error:
        import transformers

        raise CheckpointError(
            f"{path}: model_type {model_type!r}: expected an architecture of transformers {transformers.__version__}, "
            f"got: {(str(error) or type(error).__name__).splitlines()[0]} Update transformers, or correct config.json."
        ) from error
    text_config = config.get_text_config(decoder=True)
    if text_config is not config:
        # The whole model's, whose text model this is.
        text_config.tie_word_embeddings = config.tie_word_embeddings
        text_config.dtype = text_config.dtype or config.dtype
    return text_config


def is_gguf(source: pathlib.Path) -> bool:
    """Whether a checkpoint is a GGUF file, by its name."""
    return source.suffix.lower() == ".gguf"


def _check_sizes(raw: dict[str, Any], path: pathlib.Path) -> None:
    """Checks what transformers divides by, or makes tensors of; all that is wrong is named."""
    problems = []
    for each in (raw, raw.get("text_config")):
        if not isinstance(each, dict):
            continue
        sizes = {name: each[name] for name in _SIZES if type(each.get(name)) is int}
        problems += [f"{name}: expected 1 or more, got {size}" for name, size in sizes.items() if size < 1]
        heads, kv_heads = sizes.get("num_attention_heads", 1), sizes.get("num_key_value_heads", 1)
        if min(heads, kv_heads) >= 1 and heads > 1 and heads % kv_heads:
            problems.append(
                f"num_key_value_heads: expected a number that divides the {heads} of num_attention_heads, got "
                f"{kv_heads}"
            )
        found = each.get("quantization_config")
        if found is not None and not isinstance(found, dict):
            problems.append(f"quantization_config: expected an object, or nothing, got {found!r}")
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}. Copy the file again, or correct it.")


def _advice(folder: pathlib.Path) -> str:
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        return f"To take it from the Hub, run: hf download {folder} --local-dir {folder.name}"
    if folder.suffix == ".safetensors":
        return "Pass the folder that it lies in."
    return _adapter(folder) or "Pass a checkpoint in the Hub's format, or a GGUF file."


def _adapter(folder: pathlib.Path) -> str:
    """What to do with a folder that holds an adapter alone; "" if it holds none."""
    if not (folder / "adapter_config.json").is_file():
        return ""
    return (
        "It is an adapter, which changes another model's weights: merge it into that one (merge_and_unload() of peft), "
        "save that with save_pretrained, and export it."
    )


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
        paths: dict[str, pathlib.Path] = {}
        twice: list[str] = []
        for path in _files(folder):
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path}: expected a safetensors file, got: {error}. Copy the checkpoint again."
                ) from error
            names: list[str] = list(file.keys())
            for name in sorted(paths.keys() & names):
                if not torch.equal(self.read(name), file.get_tensor(name)):
                    twice.append(f"{name} in {paths[name].name} and {path.name}")
            paths |= dict.fromkeys(names, path)
            self._files |= dict.fromkeys(names, file)
        if twice:
            raise CheckpointError(
                f"{folder}: expected each tensor once, or with the same values, got others of {', '.join(twice)}. "
                "Copy the checkpoint again."
            )

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
    # As in transformers, the single file comes first.
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not index.is_file():
        raise CheckpointError(
            f"{folder}: expected {SINGLE} or {INDEX}, got neither. "
            + (
                _adapter(folder)
                or "Copy the weights there, convert them to safetensors, or pass --random for seeded weights."
            )
        )
    try:
        names = sorted(
            {os.fspath(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
        CheckpointError: another name, or a checkpoint of another dtype.
    """
    known = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if wanted == "auto":
        own = getattr(config, "dtype", None)
        if isinstance(own, dict):
            own = None  # Of a model of several parts, one for each.
        if own is not None and own not in known.values():
            raise CheckpointError(
                f"dtype: expected bfloat16, float16 or float32 in config.json, or none, got {own}. Pass --dtype bf16, "
                "fp16 or fp32."
            )
        return own or torch.bfloat16
    if wanted not in known:
        raise CheckpointError(f"dtype: expected auto, {', '.join(known)}, got {wanted!r}.")
    return known[wanted]
