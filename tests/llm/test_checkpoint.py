"""Checkpoints that do not fit, and weights that are made up."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from etcuda.errors import CheckpointError
from etcuda.llm.checkpoint import SafetensorsFolder, dtype_of, read_config
from etcuda.llm.export import ExportOptions, export, load_model
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


def test_weights_in_several_files(copied: pathlib.Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, copied / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load(copied).state_dict()["lm_head.weight"], tensors["lm_head.weight"])
    (copied / "b.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"the 2 files that model\.safetensors\.index\.json names, .* b\.safetens"
    ):
        SafetensorsFolder(copied)
    (copied / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json: expected JSON with weight_map, got: KeyError"):
        SafetensorsFolder(copied)


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
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"expected a folder with config\.json, got a folder without it"):
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


def test_what_is_refused_before_weights_are_read(copied: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m\.bin: expected the name of a program, such as m\.pte"):
        export(copied, tmp_path / "m.bin", _OPTIONS)
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


def test_dtypes(checkpoint: Checkpoint) -> None:
    config = read_config(checkpoint("llama"))
    assert dtype_of(config, "auto") == torch.float32
    config.dtype = None
    assert dtype_of(config, "auto") == torch.bfloat16
    assert dtype_of(config, "fp16") == torch.float16


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
