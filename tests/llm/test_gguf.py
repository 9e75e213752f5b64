"""GGUF files: what their dequantised weights say, the tokenizer, and what is refused."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from etcuda import Int8CoalescedTensor
from etcuda.errors import CheckpointError, GgufError
from etcuda.kernels.weights.gguf_experts import experts_tensors
from etcuda.llm.export import ExportOptions, export, load_model
from etcuda.llm.gguf_checkpoint import read_gguf_config, save_gguf_tokenizer
from etcuda.llm.model import TextModel
from etcuda.llm.quantization import QuantOptions
from etcuda.llm.tokenizer import Tokenizer
from etcuda.passes.graph.recipes import is_deferred, pieces_of
from tests.llm.architectures import VOCAB, prompt, reference
from tests.llm.dequantised import straight

_OPTIONS = ExportOptions(
    target="host", dtype="fp32", max_seq_len=64, chunk=16, quant=QuantOptions(activation_dtype="exact")
)


def write(path: pathlib.Path, name: str, model: Any, kind: str = "Q8_0", **fields: Any) -> None:
    """A file as llama.cpp's converter writes it: matrices as Q8_0, of experts as ``kind``, the rest as they are."""
    config = model.config
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    if name.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
        if config.attn_logit_softcapping is not None:
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if name == "gpt-oss":
        writer.add_sliding_window(config.sliding_window)
        writer.add_vocab_size(config.vocab_size)
    for key, value in fields.items():
        if isinstance(value, str):
            writer.add_string(key.replace("__", "."), value)
    number = next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    table = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for parameter, tensor in model.named_parameters():
        experts = experts_tensors(parameter)
        if experts:
            whole = straight(tensor, parameter) if name == "gpt-oss" else tensor
            for mapped, part in zip(experts, whole.chunk(len(experts), 1), strict=True):
                _add(writer, mapped, part.contiguous().numpy(), kind if part.dim() == 3 else "F32")
            continue
        found = table.get_name(parameter, try_suffixes=(".weight", ".bias"))
        assert found is not None
        mapped = found + (".weight" if found.endswith("sinks") else "")
        weight = tensor.numpy() + (1 if name.startswith("gemma") and tensor.ndim == 1 else 0)
        for part, heads in (("attn_q.", config.num_attention_heads), ("attn_k.", config.num_key_value_heads)):
            if name == "llama" and part in mapped:
                pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
                weight = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))
        _add(writer, mapped, weight, "Q8_0" if weight.ndim == 2 and "ffn_gate_inp" not in mapped else "F32")
    if "rope_freqs" in fields:
        writer.add_tensor("rope_freqs.weight", fields["rope_freqs"])
    if fields.get("tokens"):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(fields["tokens"])
        writer.add_token_types([1] * len(fields["tokens"]))
        writer.add_token_merges(["a b", "ab c"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template("{{ messages[0]['content'] }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quantize(weight, number), raw_dtype=number)


def load(path: pathlib.Path) -> TextModel:
    model, layers = load_model(path, read_gguf_config(path), _OPTIONS, lambda done, total: None)
    return TextModel(model, layers).eval()


def llama3_factors(model: Any) -> np.ndarray:
    """What llama.cpp stores for the scaled frequencies of Llama 3."""
    config = model.config
    plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    factors: np.ndarray = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    return factors


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2", "gemma2", "gemma3"])
def test_a_file_says_what_its_dequantised_weights_say(name: str, tmp_path: pathlib.Path) -> None:
    # What a file does not say follows from the rest of it.
    gemma: dict[str, Any] = {}
    if name.startswith("gemma"):
        gemma = {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}
    if name == "gemma3":
        gemma |= {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
    whole = reference({"gemma3": "gemma3_text"}.get(name, name), **gemma)
    more: dict[str, Any] = {"rope_freqs": llama3_factors(whole)} if name == "llama" else {}
    write(tmp_path / "m.gguf", name, whole, **more)
    model = load(tmp_path / "m.gguf")
    assert isinstance(model.model.model.layers[1].mlp.up_proj.weight, Int8CoalescedTensor)
    assert (model.model.lm_head.weight is model.model.model.embed_tokens.weight) == (name not in ("llama", "qwen2"))
    for key, value in model.model.state_dict().items():
        if isinstance(value, Int8CoalescedTensor):
            whole.get_parameter(key).copy_(value.dequantize())
        else:
            # Norms of Gemma have 1 added in the file.
            torch.testing.assert_close(value, whole.state_dict()[key], rtol=0, atol=1e-6 if gemma else 0)
    tokens = torch.tensor([prompt(50)])
    with torch.no_grad():
        for start in range(0, 50, 10):
            got = model(tokens[:, start : start + 10], torch.arange(start, start + 10))
        expected = whole(tokens).logits[0, -1:]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_weights_of_an_export_stay_in_the_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etcuda.llm.gguf_checkpoint._HELD", 200)  # Norms of heads alone are read at once.
    write(tmp_path / "m.gguf", "qwen3", reference("qwen3"))
    config = read_gguf_config(tmp_path / "m.gguf")
    wanted, left = (
        load_model(tmp_path / "m.gguf", config, _OPTIONS, lambda done, total: None, defer=defer)[0].state_dict()
        for defer in (False, True)
    )
    assert wanted.keys() == left.keys()
    deferred = 0
    for name, weight in wanted.items():
        pairs = [(weight, left[name])]
        if isinstance(weight, Int8CoalescedTensor):
            assert weight.components.keys() == left[name].components.keys()
            pairs = [(tensor, left[name].components[part]) for part, tensor in weight.components.items()]
        for tensor, other in pairs:
            made = torch.cat([piece.reshape(-1) for piece in pieces_of(other)]).reshape(other.shape)
            assert torch.equal(made, tensor), name
            assert other.dtype == tensor.dtype
            deferred += is_deferred(other)
    # Of each matrix integers and scales, and the other norms.
    assert deferred == 2 * (2 * 7 + 2) + 2 * 2 + 1, deferred


def test_the_tokenizer_comes_along(tmp_path: pathlib.Path) -> None:
    tokens = [f"t{number}" for number in range(VOCAB)]
    tokens[:8] = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "abc"]
    write(tmp_path / "m.gguf", "qwen3", reference("qwen3"), tokens=tokens)
    (tmp_path / "words").mkdir()
    save_gguf_tokenizer(tmp_path / "m.gguf", tmp_path / "words")
    made = Tokenizer(tmp_path / "words")
    assert made.encode("abc", special=False) == [7]
    assert made.render([{"role": "user", "content": "hello"}]) == "hello"
    write(tmp_path / "none.gguf", "qwen3", reference("qwen3"))
    (tmp_path / "nothing").mkdir()
    save_gguf_tokenizer(tmp_path / "none.gguf", tmp_path / "nothing")
    assert list((tmp_path / "nothing").iterdir()) == []


def test_what_is_refused(tmp_path: pathlib.Path) -> None:
    whole = reference("llama")
    write(tmp_path / "scaled.gguf", "llama", whole, llama__rope__scaling__type="linear")
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.type: expected none, got 'linear'"):
        read_gguf_config(tmp_path / "scaled.gguf")
    write(tmp_path / "factors.gguf", "llama", whole, rope_freqs=np.ones(5, dtype=np.float32))
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight: expected frequencies .* shape \[5\], got \[8\]"):
        load(tmp_path / "factors.gguf")
    other = gguf.GGUFWriter(tmp_path / "other.gguf", "rwkv7")
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    with pytest.raises(CheckpointError, match=r"expected one of the GGUF architectures llama, .* got 'rwkv7'"):
        read_gguf_config(tmp_path / "other.gguf")
    with pytest.raises(GgufError, match=r"none\.gguf"):
        export(tmp_path / "none.gguf", tmp_path / "m.pte", _OPTIONS)
    quantised = ExportOptions(target="host", quant=QuantOptions("int4"))
    with pytest.raises(CheckpointError, match=r"expected no quant for a GGUF file, .* got 'int4' and 0 rules"):
        export(tmp_path / "factors.gguf", tmp_path / "m.pte", quantised)
    with pytest.raises(CheckpointError, match=r"expected a folder with config\.json for random weights, got a GGUF"):
        export(tmp_path / "factors.gguf", tmp_path / "m.pte", ExportOptions(target="host", random_seed=1))


@pytest.mark.parametrize(
    ("key", "number", "message"),
    [
        ("attention.head_count", 0, r"attention\.head_count: expected a number above 0, got 0\. Convert the model"),
        ("attention.head_count_kv", 3, r"head_count_kv: expected a number that divides the 4 heads, got 3"),
        ("context_length", 0, r"context_length: expected a number above 0, got 0"),
        ("rope.dimension_count", 8, r"rope\.dimension_count: expected the 16 numbers of a head, got 8"),
        ("block_count", 1 << 30, r"block_count: expected the 2 blocks of the file, got 1073741824"),
    ],
)
def test_numbers_that_a_header_may_not_have(tmp_path: pathlib.Path, key: str, number: int, message: str) -> None:
    write(tmp_path / "m.gguf", "llama", reference("llama"))
    data, name = bytearray((tmp_path / "m.gguf").read_bytes()), f"llama.{key}".encode()
    # A name with its length before it, its type and the number.
    place = data.index(len(name).to_bytes(8, "little") + name) + 8 + len(name) + 4
    data[place : place + 4] = number.to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_gguf_config(tmp_path / "m.gguf")


def test_a_header_without_numbers(tmp_path: pathlib.Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    missing = "; ".join(
        f"{key}: expected a number above 0, got None"
        for key in ("embedding_length", "context_length", "attention.head_count", "attention.layer_norm_rms_epsilon")
    )
    with pytest.raises(CheckpointError, match=re.escape(missing)):
        read_gguf_config(tmp_path / "m.gguf")


@pytest.mark.parametrize("tokens", [["a", "b", "c"], ["t"]])
def test_a_tokenizer_that_is_none(tmp_path: pathlib.Path, tokens: list[str]) -> None:
    # The merges are of tokens that it has not: the package panics, or raises.
    write(tmp_path / "m.gguf", "llama", reference("llama"), tokens=tokens)
    with pytest.raises(CheckpointError, match=r"expected a tokenizer that transformers converts, got: .*Download the"):
        save_gguf_tokenizer(tmp_path / "m.gguf", tmp_path)
