"""Files that were written before ``activation`` became ``activation_dtype``, and calls that still say it.

``files/`` was written by that version: ``torch.save`` and ``save_weights`` of the weight below as int4, with
activation="exact", and as int8.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor

import etcuda
from etcuda import Int4CoalescedConfig, Int4CoalescedTensor, Int8CoalescedConfig, Int8CoalescedTensor
from etcuda.errors import OptionError
from etcuda.kernels.weights.config import quantize_tensor
from etcuda.kernels.weights.convert import from_torchao
from etcuda.kernels.weights.gguf import GgufFile
from tests.kernels.weights.weight_cases import INT4_FORMATS, random_components

FILES = pathlib.Path(__file__).parent / "files"


def checkpoint() -> dict[str, Tensor]:
    # The tensors are named as etcuda.kernels.int4.tensor.Int4CoalescedTensor there.
    found: dict[str, Tensor] = torch.load(FILES / "before_activation_dtype.pt", weights_only=True)
    return found


def safetensors() -> dict[str, Tensor]:
    return etcuda.load_weights(FILES / "before_activation_dtype.safetensors")


@pytest.mark.parametrize("load", [checkpoint, safetensors])
def test_files_of_before(load: Any) -> None:
    weight = ((torch.arange(512).reshape(8, 64) * 7 % 37) - 18).float() / 16
    loaded = load()
    wanted = {
        "int4": quantize_tensor(weight, Int4CoalescedConfig(activation_dtype="exact")),
        "int8": quantize_tensor(weight, Int8CoalescedConfig(32)),
    }
    assert loaded.keys() == wanted.keys()
    assert [type(loaded[name]) for name in wanted] == [Int4CoalescedTensor, Int8CoalescedTensor]
    for name, expected in wanted.items():
        got: Any = loaded[name]
        assert not hasattr(got, "activation")
        for attribute in ("group_size", "activation_dtype", "dtype", "shape"):
            assert getattr(got, attribute) == getattr(expected, attribute)
        assert got.components.keys() == expected.components.keys()
        assert all(torch.equal(got.components[part], stored) for part, stored in expected.components.items())
        assert got.with_activation_dtype("exact").activation_dtype == "exact"


def test_the_key_in_files_stays(tmp_path: pathlib.Path) -> None:
    # What a reader of before needs.
    etcuda.save_weights(safetensors(), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == (FILES / "before_activation_dtype.safetensors").read_bytes()


def components() -> dict[str, Tensor]:
    return random_components(INT4_FORMATS[4], 8, 512)


def torchao_tensor() -> Any:
    return IntxUnpackedToInt8Tensor.from_hp(torch.randn(4, 64), (1, 32), torch.int4)


@pytest.mark.parametrize(
    ("call", "owner"),
    [
        (lambda: Int4CoalescedConfig(activation="exact"), "Int4CoalescedConfig"),  # type: ignore[call-arg]
        (lambda: Int8CoalescedConfig(16, activation="exact"), "Int8CoalescedConfig"),  # type: ignore[call-arg]
        (lambda: Int4CoalescedTensor.from_components(components(), 32, activation="exact"), "CoalescedTensor.from_"),
        (
            lambda: Int4CoalescedTensor(
                **components(), group_size=32, activation="exact", dtype=torch.float32
            ),  # type: ignore[call-arg]
            "CoalescedTensor: ",
        ),
        (lambda: etcuda.convert_model(nn.Linear(2, 2), activation="exact"), "convert_model"),  # type: ignore[call-arg]
        (lambda: from_torchao(torchao_tensor(), activation="exact"), "from_torchao"),  # type: ignore[call-arg]
        (lambda: etcuda.load_gguf(nn.Linear(2, 2), "w.gguf", activation="exact"), "load_gguf"),  # type: ignore[call-arg]
        (lambda: etcuda.read_gguf("w.gguf", activation="exact"), "read_gguf"),  # type: ignore[call-arg]
        (lambda: GgufFile.read(None, "w", activation="exact"), "GgufFile.read"),  # type: ignore[arg-type, call-arg]
    ],
)  # fmt: skip
def test_an_old_keyword_names_the_new_one(call: Any, owner: str) -> None:
    words = r"activation: expected it under its new name, activation_dtype. Write activation_dtype='exact'\."
    with pytest.raises(OptionError, match=rf"^{owner}.*{words}"):
        call()


def test_other_keywords_are_as_unknown_as_before() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'activations'"):
        Int4CoalescedConfig(activations="exact")  # type: ignore[call-arg]
