"""Checkpoints in several safetensors files, and their indices."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from etcuda.errors import CheckpointError
from etcuda.llm.checkpoint import SafetensorsFolder
from tests.llm.test_checkpoint import copied, load

__all__ = ["copied"]  # A fixture.


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


def test_a_tensor_in_two_files(copied: pathlib.Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    save_file(tensors, copied / "a.safetensors")
    index = {"weight_map": {"lm_head.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"model.norm.weight": tensors["model.norm.weight"]}, copied / "b.safetensors")
    assert torch.equal(load(copied).state_dict()["model.norm.weight"], tensors["model.norm.weight"])
    save_file({"model.norm.weight": tensors["model.norm.weight"] + 1}, copied / "b.safetensors")
    with pytest.raises(
        CheckpointError, match=r"same values, got others of model\.norm\.weight in a\.safetensors and b\.safetensors\."
    ):
        SafetensorsFolder(copied)


def test_an_index_that_is_none_and_one_beside_a_single_file(copied: pathlib.Path) -> None:
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert "lm_head.weight" in SafetensorsFolder(copied).names(), "the single file comes first, as in transformers"
    (copied / "model.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": {"x": 4}}))
    with pytest.raises(CheckpointError, match=r"index\.json: expected JSON with weight_map, got: TypeError"):
        SafetensorsFolder(copied)
