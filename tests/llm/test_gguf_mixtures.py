"""GGUF files of mixtures of experts: what their dequantised weights say, and what is refused."""

from __future__ import annotations

import pathlib

import gguf
import pytest
import torch

from etcuda.errors import CheckpointError
from etcuda.kernels.weights.gguf import GgufFile
from etcuda.kernels.weights.tensor import CoalescedTensor
from etcuda.llm.export import ExportOptions, load_model
from etcuda.llm.gguf_checkpoint import read_gguf_config
from etcuda.llm.gguf_mixtures import mixture_config
from etcuda.passes.graph.recipes import is_deferred, pieces_of
from tests.llm import test_gguf
from tests.llm.architectures import reference
from tests.llm.dequantised import dequantised, logits, transformers_logits

_NAMES = {"qwen3moe": "qwen3_moe", "llama": "mixtral", "gpt-oss": "gpt_oss"}


@pytest.mark.parametrize(("arch", "kind"), [("qwen3moe", "Q8_0"), ("llama", "Q4_0"), ("gpt-oss", "MXFP4")])
def test_a_file_says_what_its_dequantised_weights_say(arch: str, kind: str, tmp_path: pathlib.Path) -> None:
    whole = reference(_NAMES[arch])
    test_gguf.write(tmp_path / "m.gguf", arch, whole, kind)
    model = test_gguf.load(tmp_path / "m.gguf")
    experts = [weight for key, weight in model.model.named_parameters() if key.endswith("experts.gate_up_proj")]
    assert all(isinstance(weight, CoalescedTensor) for weight in experts)
    assert len(experts) == 2
    wanted = transformers_logits(dequantised(model.model, whole))
    torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-3)


def test_experts_of_an_export_stay_in_the_file(tmp_path: pathlib.Path) -> None:
    test_gguf.write(tmp_path / "m.gguf", "qwen3moe", reference("qwen3_moe"))
    config, options = read_gguf_config(tmp_path / "m.gguf"), ExportOptions(target="host", max_seq_len=64, chunk=16)
    read, left = (
        load_model(tmp_path / "m.gguf", config, options, lambda done, total: None, defer=defer)[0]
        for defer in (False, True)
    )
    for name in ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"):
        parts = left.get_parameter(name).components
        assert parts.keys() == read.get_parameter(name).components.keys()
        for part, wanted in read.get_parameter(name).components.items():
            assert is_deferred(parts[part])
            made = torch.cat([piece.reshape(-1) for piece in pieces_of(parts[part])]).reshape(wanted.shape)
            assert torch.equal(made, wanted)


def test_yarn_of_gpt_oss(tmp_path: pathlib.Path) -> None:
    path = header(
        tmp_path / "m.gguf", "gpt-oss", embedding_length=64, block_count=2, context_length=256,
        attention__head_count=4, attention__head_count_kv=2, attention__layer_norm_rms_epsilon=1,
        attention__sliding_window=8, expert_count=4, expert_used_count=2, expert_feed_forward_length=128,
        rope__freq_base=150000, rope__scaling__type="yarn", rope__scaling__factor=32,
        rope__scaling__original_context_length=4096,
    )  # fmt: skip
    config = mixture_config(GgufFile(path), None, path)
    assert config.rope_parameters == {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "truncate": False, "beta_fast": 32.0,
        "beta_slow": 1.0, "original_max_position_embeddings": 4096,
    }  # fmt: skip
    assert (config.head_dim, config.num_local_experts, config.num_experts_per_tok) == (16, 4, 2)


def header(path: pathlib.Path, arch: str, **fields: int | str) -> pathlib.Path:
    """A file without tensors."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in fields.items():
        name = f"{arch}.{key.replace('__', '.')}"
        if isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_is_refused(tmp_path: pathlib.Path) -> None:
    path = header(tmp_path / "a.gguf", "gpt-oss", expert_count=4)
    with pytest.raises(CheckpointError, match=r"a\.gguf: expected gpt-oss\.rope\.freq_base in the header, got none"):
        read_gguf_config(path)
    path = header(tmp_path / "b.gguf", "gpt-oss", expert_count=4, rope__freq_base=1, rope__scaling__type="linear")
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.type: expected yarn or none, got 'linear'"):
        read_gguf_config(path)
    path = header(tmp_path / "c.gguf", "gemma3", expert_count=4)
    with pytest.raises(CheckpointError, match="expected experts in the GGUF architectures gpt-oss, llama and qwen3moe"):
        read_gguf_config(path)
