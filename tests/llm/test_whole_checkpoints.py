"""From quantised checkpoints and GGUF files to tokens: those of transformers with the dequantised weights. One kind
runs by default, the others with ``--exhaustive``."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from etcuda import llm
from etcuda.llm.export import ExportOptions, export
from etcuda.llm.quantization import QuantOptions
from etcuda.llm.tokenizer import Tokenizer
from tests.exhaustive import only
from tests.llm import test_gguf
from tests.llm.architectures import VOCAB, greedy, prompt, save
from tests.llm.conftest import CHUNK, MAX_SEQ_LEN, train_tokenizer
from tests.llm.test_quantized_checkpoint import Made

pytestmark = pytest.mark.slow
GROUP = 32


def integers(folder: pathlib.Path, model: Any, method: str) -> pathlib.Path:
    """A checkpoint of AWQ or GPTQ, of made-up integers, which become the model's weights too."""
    tensors = load_file(folder / "model.safetensors")
    for name in [each for each in tensors if each.endswith("_proj.weight")]:
        n, k = tensors.pop(name).shape
        made = Made(n, k, GROUP, seed=len(tensors))
        layer = name.removesuffix(".weight")
        tensors |= made.awq(layer) if method == "awq" else made.gptq(layer, 1)
        model.get_parameter(name).copy_(made.values)
    save_file(tensors, folder / "model.safetensors")
    configure(folder, {"quant_method": method, "bits": 4, "group_size": GROUP})
    return folder


def torchao(folder: pathlib.Path, model: Any) -> pathlib.Path:
    """A checkpoint of torchao, some layers in four bits and some in eight."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    four = IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP), version=2)
    quantize_(model, four, lambda module, name: isinstance(module, torch.nn.Linear) and "mlp" in name)
    eight = Int8WeightOnlyConfig(version=2)
    quantize_(model, eight, lambda module, name: isinstance(module, torch.nn.Linear) and "self_attn" in name)
    state = {name: value.data for name, value in model.state_dict().items()}
    tensors, metadata = flatten_tensor_state_dict(state)
    save_file(tensors, folder / "model.safetensors", metadata={**metadata, "format": "pt"})
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and type(module.weight.data) is not torch.Tensor:
            module.weight = torch.nn.Parameter(module.weight.dequantize(), requires_grad=False)
    configure(folder, {"quant_method": "torchao"})
    return folder


def configure(folder: pathlib.Path, quantization: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def gguf_file(folder: pathlib.Path, model: Any) -> pathlib.Path:
    """A GGUF file with a tokenizer, whose matrices are Q8_0."""
    path = folder / "m.gguf"
    tokens = [f"t{number}" for number in range(VOCAB)]
    tokens[:8] = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "abc"]
    test_gguf.write(path, "qwen3", model, tokens=tokens)
    for key, value in test_gguf.load(path).model.state_dict().items():
        if hasattr(value, "dequantize"):
            model.get_parameter(key).copy_(value.dequantize())
    return path


@pytest.mark.parametrize("kind", [only(True, "awq"), only(False, "gptq"), only(False, "torchao"), only(False, "gguf")])
def test_tokens_are_those_of_the_dequantised_weights(kind: str, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "checkpoint"
    whole = save("qwen3" if kind == "gguf" else "llama", folder)
    if kind == "gguf":
        source = gguf_file(folder, whole)
    else:
        source = torchao(folder, whole) if kind == "torchao" else integers(folder, whole, kind)
    if kind == "awq":
        train_tokenizer(folder)
    exact = QuantOptions(activation_dtype="exact")
    options = ExportOptions(
        target="host", dtype="fp32", max_seq_len=MAX_SEQ_LEN, chunk=CHUNK, tokenizer_inside=kind == "awq", quant=exact
    )
    export(source, tmp_path / "m.pte", options)
    model = llm.load(tmp_path / "m.pte")
    expected = greedy(whole, prompt(20), 40)
    assert len(set(expected)) > 3
    made = model.generate(prompt(20), max_new_tokens=40, ignore_eos=True)
    made.text()
    assert made.tokens == expected
    if kind == "gguf":
        assert model.encode("abc")[-1] == 7
    if kind == "awq":
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "m.ptd", "m.pte"]
        conversation = [{"role": "user", "content": "Shall I?"}]
        assert model.tokenizer.render(conversation) == Tokenizer(folder).render(conversation)
        assert model.encode("Shall I?") == Tokenizer(folder).encode("Shall I?")
