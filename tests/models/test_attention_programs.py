"""Programs of whole models, exported for a GPU that is not here, hold the attention kernels."""

from __future__ import annotations

import pathlib

import pytest

from etcuda import CompileOptions
from etcuda.backend.inspect import inspect_program
from examples.export import export_case
from tests.exhaustive import only


# The others of the registry are in the column "attention" of docs/models.md.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoder-bf16", only(False, "gemma3-bf16")])
def test_attention_goes_to_the_kernels(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pte"
    record = export_case(name, "sm_90", path, CompileOptions(attention_kernels=True, progress=False))
    assert record.delegated == record.nodes
    assert record.attention == ("split", "tiled")
    methods = {method.name: method.delegates for method in inspect_program(path).methods}
    assert set(methods) == {"prefill", "decode"}
    for name, delegates in methods.items():
        (delegate,) = delegates
        (image,) = delegate.images
        assert "attention_split_pdl" in image.kernels
        assert ("attention_tiled_kernel" in image.kernels) == (name == "prefill")
