"""Writes the checkpoint as a GGUF file, as llama.cpp's converter does: weights, configuration, tokenizer, template.

    python -m examples.language_model.gguf_file austen.gguf --type Q8_0

Matrices take the type that is given, norms float32. Rows of llama's q and k are interleaved, head by head, which is
how llama.cpp rotates them.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from examples.language_model.train import CHECKPOINT

TYPES = {name: gguf.GGMLQuantizationType[name] for name in ("F16", "Q8_0", "Q4_0")}


def write_gguf(checkpoint: pathlib.Path, path: pathlib.Path, type_name: str) -> None:
    """Writes a Llama's checkpoint of transformers as a GGUF file.

    Args:
        checkpoint: folder with ``config.json``, ``model.safetensors`` and a byte-level BPE tokenizer.
        path: of the file.
        type_name: of the matrices: ``F16``, ``Q8_0`` or ``Q4_0``; rows are multiples of 32.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _add_config(writer, config)
    _add_tokenizer(writer, checkpoint, config)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"attn_q.": config.num_attention_heads, "attn_k.": config.num_key_value_heads}
    kind = TYPES[type_name]
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        mapped = table.get_name(name, try_suffixes=(".weight",))
        if mapped is None:
            raise ValueError(f"{name}: expected a tensor of a Llama, got one that GGUF has no name for.")
        values = tensor.to(torch.float32)
        for part, count in heads.items():
            if part in mapped:
                values = interleaved(values, count)
        if values.dim() == 1:
            writer.add_tensor(mapped, values.numpy())
        else:
            writer.add_tensor(mapped, gguf.quantize(values.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """The rows of each head, [heads * head_dim, K], with the second half between those of the first."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()


def _add_config(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_name("Austen")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: pathlib.Path, config: Any) -> None:
    read = json.loads((checkpoint / "tokenizer.json").read_text())
    vocab: dict[str, int] = read["model"]["vocab"]
    special = {token["content"] for token in read["added_tokens"] if token["special"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in read["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("--type", default="Q8_0", choices=list(TYPES))
    parser.add_argument("--checkpoint", type=pathlib.Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    write_gguf(arguments.checkpoint, arguments.path, arguments.type)


if __name__ == "__main__":
    main()
