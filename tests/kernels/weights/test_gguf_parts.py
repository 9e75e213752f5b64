"""GGUF models in several files."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch
from torch import nn

import etcuda
from etcuda.errors import GgufError
from etcuda.kernels.weights.gguf import GgufFile

NAMES = ("a", "b", "c")


def _write(folder: pathlib.Path, seed: int = 0, name: str = "m", names: tuple[str, ...] = NAMES) -> list[pathlib.Path]:
    """A model of one tensor [3, 32] a file, quantised in the second."""
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "test", split_max_tensors=1)
    generator = np.random.default_rng(seed)
    for place, tensor in enumerate(names):
        values = generator.normal(size=(3, 32)).astype(np.float32)
        if place == 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{tensor}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{tensor}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{name}-0*"))


def _model() -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(32, 3, bias=False) for name in NAMES})


def test_all_parts_are_loaded(tmp_path: pathlib.Path) -> None:
    parts = _write(tmp_path)
    assert [each.name for each in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    model = _model()
    kinds = {"a.weight": "F32", "b.weight": "Q8_0", "c.weight": "F32"}
    assert etcuda.load_gguf(model, parts[0]) == kinds
    generator = np.random.default_rng(0)
    for name in NAMES:
        expected = torch.from_numpy(generator.normal(size=(3, 32)).astype(np.float32))
        weight = model.get_parameter(f"{name}.weight")
        found = weight.dequantize(torch.float32) if name == "b" else weight  # type: ignore[operator]
        torch.testing.assert_close(found, expected, atol=0.02 if name == "b" else 0.0, rtol=0.0)
    assert sorted(etcuda.read_gguf(parts[0])) == sorted(kinds)
    assert GgufFile(parts[0]).architecture == "test"


def test_a_first_part_behind_a_link(tmp_path: pathlib.Path) -> None:
    # As a cache of downloads has them: names that say nothing, and links that say which part it is.
    (tmp_path / "links").mkdir()
    for place, part in enumerate(_write(tmp_path)):
        part.rename(tmp_path / f"blob{place}")
        (tmp_path / "links" / part.name).symlink_to(tmp_path / f"blob{place}")
    assert len(GgufFile(tmp_path / "links" / "m-00001-of-00003.gguf").types) == 3


def test_one_file_that_says_so(tmp_path: pathlib.Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 1)
    writer.add_tensor("a", np.ones((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert list(GgufFile(tmp_path / "m.gguf").types) == ["a"]


def _missing(parts: list[pathlib.Path]) -> pathlib.Path:
    parts[1].unlink()
    parts[2].unlink()
    return parts[0]


def _swapped(parts: list[pathlib.Path]) -> pathlib.Path:
    parts[1].rename(parts[1].with_name("x"))
    parts[2].rename(parts[1])
    parts[1].with_name("x").rename(parts[2])
    return parts[0]


def _renamed(parts: list[pathlib.Path]) -> pathlib.Path:
    return parts[0].rename(parts[0].with_name("model.gguf"))


def _number_of_another(parts: list[pathlib.Path]) -> pathlib.Path:
    shutil.copy(parts[0], parts[1])
    return parts[1]


def _twice(parts: list[pathlib.Path]) -> pathlib.Path:
    other = _write(parts[0].parent, 1, "other", ("c", "b", "a"))
    shutil.copy(other[2], parts[2])
    return parts[0]


def _of_a_model_of_two(parts: list[pathlib.Path]) -> pathlib.Path:
    other = _write(parts[0].parent, 1, "other", ("x", "y"))
    shutil.copy(other[1], parts[1])
    return parts[0]


def _truncated(parts: list[pathlib.Path]) -> pathlib.Path:
    parts[2].write_bytes(parts[2].read_bytes()[:-200])
    return parts[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_missing, r"expected all 3 parts.*none at \S*m-00002-of-00003\.gguf, \S*m-00003-of-00003\.gguf\. Download"),
        (lambda parts: parts[1], r"expected the first part of the model, got part 2\. Pass \S*m-00001-of-00003\.gguf"),
        (_swapped, r"m-00002-of-00003\.gguf: expected part 2 of 3, as its name says, got part 3 of 3"),
        (_renamed, r"expected the name of part 1 of 3, such as model-00001-of-00003\.gguf, got model\.gguf"),
        (_number_of_another, r"expected the name of part 1 of 3.*got m-00002-of-00003\.gguf"),
        (_twice, r"m-00003-of-00003\.gguf: a\.weight: expected each tensor once, got it in \S*m-00001-of-00003"),
        (_of_a_model_of_two, r"m-00002-of-00003\.gguf: expected part 2 of 3.*got part 2 of 2"),
        (_truncated, r"m-00003-of-00003\.gguf: c\.weight: .*The file is truncated"),
    ],
)
def test_parts_that_do_not_belong_together(
    change: Callable[[list[pathlib.Path]], pathlib.Path], words: str, tmp_path: pathlib.Path
) -> None:
    path = change(_write(tmp_path))
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GgufError, match=words):
        etcuda.load_gguf(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"split.no": 0, "split.count": 2, "split.tensors.count": 7}, "expected 7 tensors in all parts, got 2"),
        ({"split.no": 2, "split.count": 2}, "split.no and split.count: expected a part and a number of parts"),
        ({"split.no": 0, "split.count": "two"}, "got 0 and 'two'"),
    ],
)
def test_headers_that_contradict_themselves(fields: dict[str, int | str], words: str, tmp_path: pathlib.Path) -> None:
    for number in range(2):
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{number + 1}-of-00002.gguf", "test")
        for key, value in ({**fields, "split.no": 1} if number == 1 else fields).items():
            writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
        writer.add_tensor(NAMES[number], np.ones((3, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with pytest.raises(GgufError, match=words):
        GgufFile(tmp_path / "m-00001-of-00002.gguf")
