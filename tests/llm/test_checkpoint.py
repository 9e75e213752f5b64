"""Checkpoints that do not fit, and weights that are made up."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import types
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from etcuda.errors import CheckpointError, SaveError, TargetError
from etcuda.llm.checkpoint import SafetensorsFolder, dtype_of, read_config
from etcuda.llm.export import ExportOptions, configure, export, left_out, load_model
from etcuda.llm.methods import token_ids
from etcuda.llm.random_weights import RandomWeights, random_values
from tests.llm.architectures import reference

Checkpoint = Callable[[str], pathlib.Path]
_OPTIONS = ExportOptions(target="host", dtype="fp32", max_seq_len=64, chunk=16)


@pytest.fixture
def copied(checkpoint: Checkpoint, tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkpoint to damage."""
    return pathlib.Path(shutil.copytree(checkpoint("llama"), tmp_path / "llama"))


def load(folder: pathlib.Path, options: ExportOptions = _OPTIONS) -> torch.nn.Module:
    model, _ = load_model(folder, read_config(folder), options, lambda done, total: None)
    assert isinstance(model, torch.nn.Module)
    return model


def edit(folder: pathlib.Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_every_weight_is_the_checkpoints(checkpoint: Checkpoint) -> None:
    for name in ("llama", "qwen3", "gpt2"):
        loaded, whole = load(checkpoint(name)).state_dict(), reference(name).state_dict()
        assert loaded.keys() == whole.keys()
        for key, value in whole.items():
            assert torch.equal(loaded[key], value), key


def test_buffers_that_no_checkpoint_has_are_computed(checkpoint: Checkpoint) -> None:
    loaded, whole = dict(load(checkpoint("llama")).named_buffers()), dict(reference("llama").named_buffers())
    assert loaded.keys() == whole.keys()
    assert loaded
    for name, value in whole.items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gemma4_text", "smollm3"])
def test_a_model_in_bf16_is_that_of_from_pretrained(checkpoint: Checkpoint, name: str) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.bfloat16)
    ours = load(checkpoint(name), ExportOptions(target="host", dtype="bf16", max_seq_len=64))
    for mine, whole in (
        (dict(ours.named_parameters()), dict(theirs.named_parameters())),
        (dict(ours.named_buffers()), dict(theirs.named_buffers())),
    ):
        assert mine.keys() == whole.keys()
        for key, value in whole.items():
            assert mine[key].dtype == value.dtype, key
            assert torch.equal(mine[key], value), key


def test_weights_that_fit_stay_in_their_file(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama")
    model = load(folder)
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        if line.endswith(str(folder / "model.safetensors")) and start <= model.lm_head.weight.data_ptr() < end:
            break
    else:
        pytest.fail("the head's weight is not in a mapped file")
    other = load(folder, ExportOptions(target="host", dtype="bf16", max_seq_len=64))
    assert other.lm_head.weight.dtype == torch.bfloat16


def test_a_tied_head_is_one_tensor(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("qwen3"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_and_an_embedding_that_are_one(copied: pathlib.Path) -> None:
    edit(copied, "config.json", tie_word_embeddings=True)
    path = copied / "model.safetensors"
    tensors = load_file(path)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    with pytest.raises(CheckpointError, match=rf"{head}: expected the values of {embedding}, .* got others; set tie"):
        load(copied)
    save_file({**tensors, head: tensors[embedding].clone()}, path)
    assert torch.equal(load(copied).state_dict()[head], tensors[embedding])
    del tensors[embedding]
    save_file(tensors, path)
    for name in (embedding, head):
        assert torch.equal(load(copied).state_dict()[name], tensors[head])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_attention_heads": 8, "hidden_size": 65},
            r"config\.json: expected a configuration that transformers takes, got: Class valid",
        ),
        (
            {"num_attention_heads": 0, "head_dim": -16},
            r"num_attention_heads: .* got 0; head_dim: .* 1 or more, got -16\.",
        ),
        (
            {"num_key_value_heads": 3},
            r"num_key_value_heads: .* divides the 4 of num_attention_heads, got 3\. Copy the file again",
        ),
        ({"quantization_config": "int4"}, r"quantization_config: expected an object, or nothing, got 'int4'"),
        ({"dtype": "float99"}, r"got: module 'torch' has no attribute 'float99' Update transformers, or correct"),
        (
            {"model_type": "t5"},
            r"model of, got: Unrecognized .*AutoModelForCausalLM\. Correct config\.json, or name a dec",
        ),
        ({"hidden_size": "x"}, r"Field 'hidden_size' expected int, got str"),
        ({"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}}, r"got one whose 'nope' it does not know"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}},
            r"model_type 'mine': expected an architecture",
        ),
    ],
)
def test_configurations_that_no_model_is_built_of(
    copied: pathlib.Path, values: dict[str, object], message: str
) -> None:
    edit(copied, "config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        load(copied)


def test_tokens_that_begin_and_end_texts() -> None:
    config = types.SimpleNamespace(vocab_size=512, eos_token_id=[1, 7, 50256], bos_token_id=None)
    assert token_ids("eos_token_id", {"eos_token_id": None}, config) == [1, 7], "null is left out, and so is no token"
    assert token_ids("eos_token_id", {"eos_token_id": -1}, config) == []
    assert token_ids("eos_token_id", {"eos_token_id": [2, 3]}, config) == [2, 3]
    assert token_ids("bos_token_id", {}, config) == []
    with pytest.raises(CheckpointError, match=r"eos_token_id: expected a token id or a list of them, got '2'"):
        token_ids("eos_token_id", {"eos_token_id": ["2"]}, config)


def test_missing_extra_and_misshapen_tensors_are_listed_together(copied: pathlib.Path) -> None:
    path = copied / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    tensors["lm_head.weight"] = torch.zeros(3, 4)
    tensors["model.extra"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load(copied)
    message = str(caught.value)
    assert "model.norm.weight: expected a tensor for it, got none" in message
    assert "lm_head.weight: expected shape [512, 64], got [3, 4]" in message
    assert "model.extra: expected a name of the model" in message


@pytest.mark.parametrize("inside", ["language_model.model.", "model.language_model."])
def test_the_text_model_among_others(checkpoint: Checkpoint, tmp_path: pathlib.Path, inside: str) -> None:
    from transformers import Gemma3Config, SiglipVisionConfig

    whole = reference("gemma3_text")
    vision = SiglipVisionConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = Gemma3Config(text_config=whole.config.to_dict(), vision_config=vision.to_dict(), tie_word_embeddings=False)
    config.save_pretrained(tmp_path)
    tensors = {"vision_tower.patch.weight": torch.zeros(2)}
    for name, value in whole.state_dict().items():
        head = "lm_head.weight" if inside.startswith("model.") else "language_model.lm_head.weight"
        tensors[name.replace("model.", inside, 1) if name != "lm_head.weight" else head] = value.contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    for key, value in whole.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    tensors[f"{inside}layers.9.extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.9\.extra: expected a name of the model"):
        load(tmp_path)


def test_a_checkpoint_of_integers_is_refused(copied: pathlib.Path) -> None:
    path = copied / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int32)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: expected floating numbers, got torch\.int32"):
        load(copied)


def test_numbers_that_fp16_does_not_hold_are_refused(copied: pathlib.Path) -> None:
    path = copied / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, path)
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight: expected numbers that torch\.float16 holds, got 1e"
    ):
        load(copied, ExportOptions(target="host", dtype="fp16", max_seq_len=64))


def test_no_checkpoint(tmp_path: pathlib.Path, copied: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a folder with config\.json, got no folder"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(
        CheckpointError, match=r"got no folder\. To .* run: hf download some/model-8B --local-dir model-8B"
    ):
        read_config(pathlib.Path("some/model-8B"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"expected a folder with config\.json, got a folder without it"):
        read_config(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"config\.json, got a file\. Pass the folder that it lies in"):
        read_config(copied / "model.safetensors")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"got a folder without it\. It is an adapter, .*merge_and_unload"):
        read_config(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"got neither\. It is an adapter, .*merge_and_unload"):
        SafetensorsFolder(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"expected JSON with model_type, got: RecursionError"):
        read_config(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"no": "type"}')
    with pytest.raises(CheckpointError, match=r"expected JSON with model_type, got: KeyError"):
        read_config(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(CheckpointError, match=r"model_type 'nonesuch': expected an architecture of transformers 5"):
        read_config(tmp_path / "empty")
    (copied / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"expected a safetensors file, got"):
        load(copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or .* got neither.*--random"):
        load(copied)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seq_len": 3}, r"max_seq_len: expected 4 or more tokens, got 3"),
        ({"chunk": 1}, r"chunk: expected 2 or more tokens, got 1"),
        ({"random_seed": -1}, r"random_seed: expected None, or 0 or more, got -1"),
    ],
)
def test_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ExportOptions(**options)


def test_what_is_refused_before_weights_are_read(
    copied: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m\.bin: expected the name of a program, such as m\.pte"):
        export(copied, tmp_path / "m.bin", _OPTIONS)
    with pytest.raises(CheckpointError, match=r"m\.pte: expected a folder to write it to, got none of the name .*nope"):
        export(copied, tmp_path / "nope" / "m.pte", _OPTIONS)
    places = tmp_path / "places"
    for name, message in (
        (
            "m.ptd",
            r"m\.ptd: expected no such file, or the weights of the m\.pte that is replaced, got a file that is not",
        ),
        ("m.tokenizer", r"m\.tokenizer: expected a folder for the tokenizer, or nothing, got a file"),
    ):
        places.mkdir()
        (places / name).write_text("notes")
        with pytest.raises(SaveError, match=message):
            export(copied, places / "m.pte", _OPTIONS)
        shutil.rmtree(places)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(SaveError, match=r"m\.pte: expected a folder that can be written to"):
            export(copied, tmp_path / "m.pte", _OPTIONS)
    with pytest.raises(TargetError, match=r"target 'sm_91' is not known"):
        export(copied, tmp_path / "m.pte", ExportOptions(target="sm_91"))
    assert configure(copied, ExportOptions(shortens=True))[1].max_seq_len == 256
    long = ExportOptions(target="host", max_seq_len=257)
    with pytest.raises(CheckpointError, match=r"at most the 256 positions of the model, got 257"):
        export(copied, tmp_path / "m.pte", long)
    with pytest.raises(CheckpointError, match=r"dtype: expected auto, bf16, fp16, fp32, got 'int3'"):
        export(copied, tmp_path / "m.pte", ExportOptions(target="host", dtype="int3", max_seq_len=64))
    edit(copied, "config.json", vocab_size=500)
    with pytest.raises(
        CheckpointError, match=r"expected ids below the vocab_size 500 of config\.json, got ids up to 511"
    ):
        export(copied, tmp_path / "m.pte", _OPTIONS)
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected a tokenizer, got"):
        export(copied, tmp_path / "m.pte", _OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_an_export_that_is_interrupted_leaves_nothing(checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "lower":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint("llama"), tmp_path / "m.pte", _OPTIONS, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_operators_that_no_backend_took_are_told() -> None:
    def plan(name: str, *operators: tuple[str, str]) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            name=name, operators=[types.SimpleNamespace(name=each, overload=rest) for each, rest in operators]
        )

    plans = [plan("decode"), plan("prefill", ("aten::sort", "values"), ("aten::nonzero", "out"))]
    program = types.SimpleNamespace(executorch_program=types.SimpleNamespace(execution_plan=plans))
    assert left_out(program) == {"prefill": ("aten::sort.values", "aten::nonzero.out")}


def test_dtypes(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("llama"))
    assert dtype_of(config, "auto") == torch.float32
    config.dtype = None
    assert dtype_of(config, "auto") == torch.bfloat16
    assert dtype_of(config, "fp16") == torch.float16
    config.dtype = torch.float64
    with pytest.raises(
        CheckpointError, match=r"dtype: expected bfloat16, float16 or float32 in config\.json, or none,"
    ):
        dtype_of(config, "auto")
    assert dtype_of(config, "fp32") == torch.float32


def test_random_weights_are_bytes_that_do_not_change() -> None:
    values = random_values("0/model.layers.0.mlp.up_proj.weight", 5)
    assert (values * 2**15).tolist() == [24018, 29934, 3502, 8376, -12056]
    # Chunks and lengths do not matter.
    assert torch.equal(random_values("0/model.layers.0.mlp.up_proj.weight", 100)[:5], values)
    assert not torch.equal(random_values("1/model.layers.0.mlp.up_proj.weight", 5), values)


def test_random_weights_have_the_deviation() -> None:
    weights = RandomWeights({"a.weight": (300, 400), "norm.weight": (4096,)}, seed=3, deviation=0.02)
    matrix, norm = weights.read("a.weight"), weights.read("norm.weight")
    assert matrix.shape == (300, 400)
    assert 0.012 < float(matrix.std()) < 0.03
    assert abs(float(matrix.mean())) < 1e-3
    assert abs(float(norm.mean()) - 1) < 1e-2


def test_random_weights_of_a_folder_without_weights(copied: pathlib.Path) -> None:
    (copied / "model.safetensors").unlink()
    options = ExportOptions(target="host", dtype="fp32", max_seq_len=64, random_seed=5)
    first, again = load(copied, options), load(copied, options)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    other = load(copied, ExportOptions(target="host", dtype="fp32", max_seq_len=64, random_seed=6))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
