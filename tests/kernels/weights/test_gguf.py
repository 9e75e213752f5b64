"""GGUF files, written by the ``gguf`` package, as our types and in models."""

from __future__ import annotations

import contextlib
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import nn

import etcuda
from etcuda import Int4CoalescedTensor, Int8CoalescedTensor
from etcuda.errors import GgufError
from etcuda.kernels.weights.gguf import GgufFile
from etcuda.kernels.weights.gguf_blocks import BLOCK_TYPES

# Where the float16 numbers of a block stand.
Tensors = Mapping[str, tuple[Any, str]]
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "Q8_0": (0,), "MXFP4": (),
}  # fmt: skip
WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # What the package quantises itself.


def random_blocks(kind: str, n: int, k: int, seed: int = 0) -> Any:
    """Bytes of a tensor [n, k] with random integers and scale codes, and finite steps."""
    generator = np.random.default_rng(seed)
    block = BLOCK_TYPES[kind]
    raw = generator.integers(0, 256, (n, k // block.weights, block.nbytes), dtype=np.uint8)
    for offset in HALVES[kind]:
        halves = generator.normal(size=raw.shape[:2]).astype(np.float16)
        raw[..., offset : offset + 2] = halves[..., None].view(np.uint8)
    if kind == "MXFP4":  # Exponents that are met in weights.
        raw[..., 0] = generator.integers(112, 130, raw.shape[:2])
    return raw.reshape(n, -1)


def write(
    path: pathlib.Path, tensors: Mapping[str, tuple[Any, str]], arch: str = "test", **fields: int
) -> pathlib.Path:
    """A file with tensors, each as the bytes of rows and a type, by the package's writer."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in fields.items():
        writer.add_uint32(f"{arch}.{key.replace('__', '.')}", value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_random_blocks_match_the_package(kind: str, tmp_path: pathlib.Path) -> None:
    n, k = 7, 768
    raw = random_blocks(kind, n, k)
    file = write(tmp_path / "w.gguf", {"blk.0.w": (raw, kind)})
    tensor = etcuda.read_gguf(file, dtype=torch.float32)["blk.0.w"]
    block = BLOCK_TYPES[kind]
    assert isinstance(tensor, Int4CoalescedTensor if block.format.bits == 4 else Int8CoalescedTensor)
    assert tensor.format == block.format
    assert tensor.stored_bytes == n * k * block.format.bits_per_weight() / 8
    expected = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]))
    # The package's own arithmetic is float32 and rounds at most once: equality says that nothing was recomputed.
    assert torch.equal(tensor.dequantize(), expected)
    assert block.nbytes * 8 / block.weights == block.bits_per_weight
    assert (block.weights, block.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


@pytest.mark.parametrize("kind", WRITTEN)
def test_weights_quantised_by_the_package(kind: str, tmp_path: pathlib.Path) -> None:
    weight = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    raw = gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
    tensor = etcuda.read_gguf(write(tmp_path / "w.gguf", {"w": (raw, kind)}), dtype=torch.float32)["w"]
    assert torch.equal(tensor.dequantize(), torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])))
    limit = 0.02 if kind == "Q8_0" else 0.4
    torch.testing.assert_close(tensor.dequantize(), torch.from_numpy(weight), rtol=0, atol=limit)


def test_the_bytes_of_q4_0_and_q8_0_are_kept(tmp_path: pathlib.Path) -> None:
    tensors = {kind: (random_blocks(kind, 3, 64), kind) for kind in ("Q4_0", "Q8_0")}
    read = etcuda.read_gguf(write(tmp_path / "w.gguf", tensors))
    for kind, (raw, _) in tensors.items():
        blocks = raw.reshape(3, 2, -1)
        assert read[kind].qdata.numpy().tobytes() == blocks[..., 2:].tobytes()
        assert read[kind].scale.numpy().tobytes() == blocks[..., :2].tobytes()


def test_extremes_of_q6_k(tmp_path: pathlib.Path) -> None:
    raw = random_blocks("Q6_K", 1, 256)
    raw[0, :192] = 0  # Every integer is -32,
    raw[0, 192:208] = np.array([-128, 127] * 8, dtype=np.int8).view(np.uint8)  # and scales are the greatest.
    tensor = etcuda.read_gguf(write(tmp_path / "w.gguf", {"w": (raw, "Q6_K")}), dtype=torch.float32)["w"]
    assert torch.equal(tensor.dequantize(), torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType.Q6_K)))
    assert tensor.qdata.unique().tolist() == [-32, 32]
    assert tensor.scale.unique().tolist() == [127, 128]


def test_plain_tensors_and_choice_of_names(tmp_path: pathlib.Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    brain = torch.from_numpy(values).bfloat16().view(torch.uint8).numpy()
    plain = {"a": (values, "F32"), "b": (values.astype(np.float16), "F16"), "c": (brain, "BF16")}
    file = write(tmp_path / "w.gguf", {**plain, "q": (random_blocks("Q4_0", 1, 32), "Q4_0")})
    assert GgufFile(file).types == {"a": "F32", "b": "F16", "c": "BF16", "q": "Q4_0"}
    assert GgufFile(file).shape("q") == (1, 32)
    read = etcuda.read_gguf(file, ["a", "b", "c"])
    assert [read[name].dtype for name in "abc"] == [torch.float32, torch.float16, torch.bfloat16]
    for tensor in read.values():
        assert torch.equal(tensor.float(), torch.from_numpy(values))
    exact = etcuda.read_gguf(file, ["q"], activation_dtype="exact", dtype=torch.float16)["q"]
    assert (exact.activation_dtype, exact.dtype) == ("exact", torch.float16)


def test_large_tensors_are_read_in_pieces(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks("Q4_K", 41, 512)
    file = write(tmp_path / "w.gguf", {"w": (raw, "Q4_K")})
    monkeypatch.setattr("etcuda.kernels.weights.gguf._CHUNK", 1000)
    expected = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType.Q4_K))
    assert torch.equal(etcuda.read_gguf(file)["w"].dequantize(torch.float32), expected)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 256)
        self.layer = nn.Linear(256, 64)
        self.norm = nn.LayerNorm(64, bias=False)
        self.head = nn.Linear(256, 10, bias=False)
        self.head.weight = self.embedding.weight


TENSORS = {
    "embedding.weight": (random_blocks("Q6_K", 10, 256), "Q6_K"),
    "layer.weight": (random_blocks("Q4_K", 64, 256), "Q4_K"),
    "layer.bias": (np.ones(64, dtype=np.float32), "F32"),
    "norm.weight": (np.full(64, 2, dtype=np.float32), "F32"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loading_into_a_model(device: str, tmp_path: pathlib.Path) -> None:
    with torch.device(device):
        model = Model().to(torch.bfloat16)
    types = etcuda.load_gguf(model, write(tmp_path / "w.gguf", TENSORS), activation_dtype="exact")
    assert types["layer.weight"] == "Q4_K"
    assert len(types) == 4
    assert isinstance(model.layer.weight, Int4CoalescedTensor)
    assert isinstance(model.head.weight, Int8CoalescedTensor)
    assert model.head.weight is model.embedding.weight
    assert model.layer.weight.dtype == model.layer.bias.dtype == torch.bfloat16
    assert float(model.norm.weight[3]) == 2.0
    expected = torch.from_numpy(gguf.dequantize(TENSORS["layer.weight"][0], gguf.GGMLQuantizationType.Q4_K))
    assert torch.equal(model.layer.weight.dequantize(torch.float32), expected)
    assert model.layer(model.embedding(torch.tensor([1, 9]))).shape == (2, 64)


def test_loading_with_names(tmp_path: pathlib.Path) -> None:
    renamed = {f"t{index}": value for index, value in enumerate(TENSORS.values())}
    file = write(tmp_path / "w.gguf", {**renamed, "extra": TENSORS["layer.bias"]})
    names = dict(zip(renamed, TENSORS, strict=True))
    model = Model()
    etcuda.load_gguf(model, file, names.get)
    assert isinstance(model.layer.weight, Int4CoalescedTensor)
    with pytest.raises(GgufError, match="extra: expected the name of a parameter of the model, got 'extra'"):
        etcuda.load_gguf(Model(), file, names)
    with pytest.raises(GgufError, match="names: expected names of the file's tensors, got absent"):
        etcuda.load_gguf(Model(), file, {**names, "absent": "layer.bias"})


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in TENSORS.items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({**TENSORS, "other.weight": TENSORS["layer.bias"]}, "other.weight: expected the name of a parameter"),
        (without("layer.bias"), "layer.bias: expected a tensor for it, got none"),
        ({**TENSORS, "head.weight": TENSORS["embedding.weight"]}, "head.weight: expected one tensor for head.weight"),
        (
            {**TENSORS, "layer.weight": (random_blocks("Q4_K", 32, 256), "Q4_K")},
            r"layer.weight: expected the parameter's shape \[64, 256\], got \[32, 256\]",
        ),
        (
            {**TENSORS, "norm.weight": (random_blocks("Q8_0", 1, 64).reshape(-1), "Q8_0")},
            "norm.weight: expected a floating type for weight of a LayerNorm, got Q8_0",
        ),
        (
            {**TENSORS, "layer.weight": (np.zeros((64, 84), dtype=np.uint8), "Q2_K")},
            "layer.weight: expected a floating type or one of Q4_0, .*, got Q2_K",
        ),
    ],
)
def test_files_that_do_not_fit_the_model(tensors: Any, words: str, tmp_path: pathlib.Path) -> None:
    model = Model()
    before = model.layer.weight
    with pytest.raises(GgufError, match=f"(?s)do not fit together.*{words}"):
        etcuda.load_gguf(model, write(tmp_path / "w.gguf", tensors))
    assert model.layer.weight is before


def test_tensors_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    nan = random_blocks("Q4_0", 2, 64)
    nan[1, :2] = np.array([np.nan], dtype=np.float16).view(np.uint8)
    file = write(
        tmp_path / "w.gguf",
        {
            "iq": (np.zeros((2, 18), dtype=np.uint8), "IQ4_NL"),
            "deep": (random_blocks("Q4_0", 6, 32).reshape(2, 1, 3, 18), "Q4_0"),
            "nan": (nan, "Q4_0"),
        },
    )
    for name, words in (
        ("iq", "iq: expected one of the types F32, .*, got IQ4_NL"),
        ("deep", r"deep: expected a quantised weight \[N, K\] or \[experts, N, K\], got shape \[2, 1, 3, 32\]"),
        ("nan", r"nan: scale: expected finite values, got nan at \[1, 0\]"),
        ("absent", "absent: expected a tensor of the file"),
    ):
        with pytest.raises(GgufError, match=words):
            etcuda.read_gguf(file, [name])


def damaged_type(whole: bytes) -> bytes:
    at = whole.index(b"layer.weight") + len(b"layer.weight") + 4 + 2 * 8
    assert struct.unpack_from("<I", whole, at)[0] == gguf.GGMLQuantizationType.Q4_K
    return whole[:at] + struct.pack("<I", 999) + whole[at + 4 :]


def damaged_size(size: int) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        at = whole.index(b"layer.weight") + len(b"layer.weight") + 4
        return whole[:at] + struct.pack("<Q", size) + whole[at + 8 :]

    return change


def endless_array(whole: bytes) -> bytes:
    # A header that says that 2**60 bytes follow.
    entry = struct.pack("<Q4sIIQ", 4, b"list", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8, 2**60)
    return whole[:16] + struct.pack("<Q", 1) + entry + bytes(64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: b"", "cannot be read as one"),
        (lambda whole: whole[:3], "cannot be read as one"),
        (lambda whole: b"NOPE" + whole[4:], "cannot be read as one.*magic"),
        (lambda whole: whole[:20], "it ends at byte 20"),
        (lambda whole: whole[:150], "it ends at byte 150"),
        (endless_array, "it ends at byte"),
        (lambda whole: whole[:4] + struct.pack("<I", 99) + whole[8:], "version 99"),
        (lambda whole: whole[:4] + struct.pack(">I", 3) + whole[8:], "cannot be read as one|big-endian"),
        (lambda whole: whole[:-200], r"norm\.weight: expected its 256 bytes to end by .* The file is truncated"),
        (lambda whole: whole[:1000], r"embedding\.weight: expected its 2100 bytes to end by 1000"),
        (damaged_type, r"layer\.weight: expected a known tensor type, got number 999"),
        (damaged_size(0), r"layer\.weight: expected sizes of at least 1, got \[64, 0\]"),
        (damaged_size(100), r"layer\.weight: expected rows of whole blocks of 256 \(Q4_K\), got 100"),
        (damaged_size(2**62), r"layer\.weight: expected its .* bytes to end by"),
    ],
)
def test_damaged_files(change: Callable[[bytes], bytes], words: str, tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "w.gguf", TENSORS)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(GgufError, match=words) as raised:
        etcuda.read_gguf(file)
    assert str(file) in str(raised.value)


def test_a_missing_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(GgufError, match="absent"):
        etcuda.read_gguf(tmp_path / "absent.gguf")


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_is_an_error_of_ours_or_harmless(seed: int, tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "w.gguf", TENSORS)
    whole = bytearray(file.read_bytes())
    generator = np.random.default_rng(seed)
    for at in generator.integers(0, 400, 4):
        whole[at] = generator.integers(0, 256)
    file.write_bytes(bytes(whole))
    read: dict[str, torch.Tensor] = {}
    with contextlib.suppress(GgufError):
        read = etcuda.read_gguf(file)
    assert all(tensor.numel() > 0 for tensor in read.values())


HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
SIZES: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 64,
}  # fmt: skip
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": HEAD_DIM, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {"head_dim": HEAD_DIM}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"head_dim": HEAD_DIM}),
}


def as_llama_cpp_has_it(name: str, weight: Any, arch: str) -> Any:
    """What llama.cpp's converter does to a tensor of ``transformers``."""
    heads = {"attn_q.": HEADS, "attn_k.": KV_HEADS}
    for part, count in heads.items():
        if arch == "llama" and part in name:
            pairs = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
            return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))
    return weight + 1 if arch.startswith("gemma") and name.endswith("norm.weight") else weight


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_models_of_transformers(arch: str, tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers")
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    model_name, config_name, options = ARCHITECTURES[arch]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**SIZES, **options)
    kind = getattr(transformers, model_name)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(number, 1)
    tensors: dict[str, tuple[Any, str]] = {"rope_freqs.weight": (np.ones(8, dtype=np.float32), "F32")}
    for name, parameter in kind(config).named_parameters():
        mapped = table.get_name(name, try_suffixes=(".weight", ".bias"))
        weight = as_llama_cpp_has_it(mapped, parameter.detach().numpy(), arch)
        if parameter.dim() == 2:
            quantized = "Q8_0" if "ffn" in mapped else "Q4_0"
            tensors[mapped] = (gguf.quantize(weight, gguf.GGMLQuantizationType[quantized]), quantized)
        else:
            tensors[mapped] = (weight.copy(), "F32")
    counts = {"block_count": 1, "attention__head_count": HEADS, "attention__head_count_kv": KV_HEADS}
    file = write(tmp_path / "model.gguf", tensors, arch, **counts)
    model = kind(config)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    etcuda.load_gguf(model, file)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    # The other reader dequantises, and undoes the converter's changes in its own code.
    expected = reader.load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=kind(config))["tensors"]
    found = dict(model.named_parameters())
    assert found.keys() <= expected.keys()
    for name, parameter in found.items():
        quantised = isinstance(parameter, Int4CoalescedTensor | Int8CoalescedTensor)
        assert quantised == (parameter.dim() == 2)
        values = parameter.dequantize() if quantised else parameter
        assert torch.equal(values, expected[name]), name
