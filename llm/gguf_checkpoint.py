"""A GGUF file as a checkpoint: configuration and tokenizer as transformers reads them, weights as etcuda does."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any

import torch

from etcuda.errors import CheckpointError
from etcuda.kernels.formats.base import GroupFormat
from etcuda.kernels.formats.registry import find
from etcuda.kernels.weights.gguf import GgufFile
from etcuda.kernels.weights.gguf_load import load_gguf
from etcuda.llm.gguf_mixtures import is_mixture, mixture_config
from etcuda.llm.tokenizer import reading
from etcuda.passes.graph.recipes import PartOf, Parts, deferred

_HELD = 1 << 20  # Bytes of a plain tensor below which it is read at once.
# Layers of the models of 27 billion weights.
_LARGEST = {"gemma2": 46, "gemma3": 62}
_NEEDED = (
    "block_count", "embedding_length", "context_length", "attention.head_count", "attention.layer_norm_rms_epsilon",
)  # fmt: skip
_KNOWN = ("attention.head_count_kv", "attention.key_length", "rope.dimension_count")
# Those whose tensors ``load_gguf`` gives their places.
SERVED = ("llama", "qwen2", "qwen3", "qwen3moe", "gpt-oss", "gemma2", "gemma3")


def read_gguf_config(path: pathlib.Path) -> Any:
    """The configuration of a GGUF file.

    Raises:
        CheckpointError: its architecture is not served, or the file says something that the configuration cannot.
        GgufError: the file cannot be read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    file = GgufFile(path)
    arch = file.architecture
    if arch not in SERVED:
        raise CheckpointError(
            f"{path}: expected one of the GGUF architectures {', '.join(SERVED)}, got {arch!r}. Export the checkpoint "
            "in the Hub's format instead."
        )
    scaling = file.field(f"{arch}.rope.scaling.type")
    if scaling not in (None, "none") and arch != "gpt-oss":
        raise CheckpointError(
            f"{path}: rope.scaling.type: expected none, got {scaling!r}, which transformers does not read from GGUF. "
            "Export the checkpoint in the Hub's format instead."
        )

    def read() -> Any:
        _check_header(file, path)
        try:
            made = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        except (ValueError, KeyError, TypeError, OSError, ImportError, StrictDataclassError) as error:
            said = " ".join(str(error).split())
            raise CheckpointError(
                f"{path}: expected a GGUF file whose configuration transformers reads, got: {said} Download it again, "
                "or export the checkpoint in the Hub's format."
            ) from error
        return made.get_text_config(decoder=True)

    config = mixture_config(file, read, path) if is_mixture(file) else read()
    # What transformers leaves at its defaults.
    head_dim = file.field(f"{arch}.attention.key_length")
    if head_dim is not None:
        config.head_dim = int(head_dim)
    if arch in ("gemma2", "gemma3"):
        _complete_gemma(config, file, arch)
    # transformers looks at the first part of several alone.
    config.tie_word_embeddings = "output.weight" not in file.types
    config.vocab_size = file.shape("token_embd.weight")[0]
    return config


def _check_header(file: GgufFile, path: pathlib.Path) -> None:
    """Checks the numbers that a model is built by, for what is left out transformers puts those of another model. All
    that is wrong is named."""
    found = {key: file.field(f"{file.architecture}.{key}") for key in (*_NEEDED, *_KNOWN)}
    problems = [
        f"{key}: expected a number above 0, got {value!r}"
        for key, value in found.items()
        if (value is not None or key in _NEEDED) and not (isinstance(value, int | float) and value > 0)
    ]
    if not problems:
        heads, kv_heads = found["attention.head_count"], found["attention.head_count_kv"]
        width = found["attention.key_length"] or found["embedding_length"] // heads
        if heads % (kv_heads or heads):
            problems.append(
                f"attention.head_count_kv: expected a number that divides the {heads} heads, got {kv_heads}"
            )
        if found["rope.dimension_count"] not in (None, width):
            problems.append(
                f"rope.dimension_count: expected the {width} numbers of a head, got {found['rope.dimension_count']}"
            )
        blocks = {int(name.split(".")[1]) for name in file.types if re.match(r"blk\.\d+\.", name)}
        if len(blocks) != found["block_count"]:
            problems.append(f"block_count: expected the {len(blocks)} blocks of the file, got {found['block_count']}")
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}. Convert the model again, or download the file again.")


def _complete_gemma(config: Any, file: GgufFile, arch: str) -> None:
    """Soft caps, and the scale of queries, which no field has: that of the largest is by the width of the model."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        value = file.field(f"{arch}.{name}")
        if value is not None:
            setattr(config, name, float(value))
    is_largest = config.num_hidden_layers == _LARGEST[arch]
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if is_largest else config.head_dim


def load_gguf_weights(model: Any, path: pathlib.Path, activation_dtype: str, defer: bool = False) -> None:
    """Puts the file's weights into a model on the meta device, in the formats that they have.

    Args:
        model: of ``read_gguf_config``, its buffers computed.
        path: of the file, or of the first of several.
        activation_dtype: of products with quantised weights, ``"int8"`` or ``"exact"``.
        defer: large tensors stay in the file until their bytes are asked for, as ``deferred`` says.

    Raises:
        CheckpointError: factors of rotary frequencies do not fit the model.
        GgufError: tensors and model do not fit together; the message has the names.
    """
    model.tie_weights()

    def keep(make: Callable[[], torch.Tensor], old: torch.Tensor, stored: GroupFormat | None) -> torch.Tensor:
        return _deferred(make, old, stored, activation_dtype)

    load_gguf(model, path, activation_dtype=activation_dtype, keep=keep if defer else None)
    file = GgufFile(path)
    if "rope_freqs.weight" in file.types:
        _scale_frequencies(model, file.read("rope_freqs.weight"), path)


def _deferred(
    make: Callable[[], torch.Tensor], old: torch.Tensor, stored: GroupFormat | None, activation_dtype: str
) -> torch.Tensor:
    """A tensor that is read when its bytes are asked for; a small one at once."""
    if stored is None:
        if old.nbytes < _HELD:
            return make()
        return deferred(PartOf(_Reading(lambda: {"": make()}), "", tuple(old.shape), old.dtype))
    reading = _Reading(lambda: make().components)  # type: ignore[attr-defined]
    parts = {
        part: deferred(PartOf(reading, part, shape, dtype))
        for part, (shape, dtype) in stored.components(*old.shape).items()
    }
    qdata, scale = parts.pop("qdata"), parts.pop("scale")
    made: torch.Tensor = find(stored.name).tensor_type(
        qdata, scale, stored.group_size, activation_dtype, old.dtype, **parts
    )
    return made


class _Reading(Parts):
    """The stored tensors of one of the file's."""

    def __init__(self, read: Callable[[], dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self._read = read

    def make(self) -> dict[str, torch.Tensor]:
        """All of them."""
        return self._read()


def _scale_frequencies(model: Any, factors: torch.Tensor, path: pathlib.Path) -> None:
    # Where llama.cpp keeps the scaling of Llama 3.
    rotary = [module for module in model.modules() if isinstance(getattr(module, "inv_freq", None), torch.Tensor)]
    if len(rotary) != 1 or rotary[0].inv_freq.shape != factors.shape:
        got = ", ".join(str(list(module.inv_freq.shape)) for module in rotary) or "none"
        raise CheckpointError(
            f"{path}: rope_freqs.weight: expected frequencies of one kind in the model, of shape "
            f"{list(factors.shape)}, got {got}."
        )
    rotary[0].inv_freq = rotary[0].inv_freq / factors.to(torch.float32)


def save_gguf_tokenizer(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the file's tokenizer and chat template in the Hub's format; nothing if it has none.

    Raises:
        CheckpointError: transformers cannot convert it.
    """
    if GgufFile(path).field("tokenizer.ggml.model") is None:
        return
    from transformers import AutoTokenizer

    def refusal(said: str) -> CheckpointError:
        return CheckpointError(
            f"{path}: expected a tokenizer that transformers converts, got: {said}. Download the file again, or export "
            "the checkpoint in the Hub's format."
        )

    with reading(refusal):
        made = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        made.save_pretrained(folder)
