"""A compiled kernel that is not what was written to the cache is not used, nor in the way."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import pytest

from etcuda.backend.inductor.kernel_cache import VerifiedCache

FILES = {"kernel.cubin": b"\x7fELF code", "kernel.ptx": b"text", "kernel.json": b'{"shared": 16}'}


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def become_a_folder(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


def as_triton_writes_it(path: pathlib.Path) -> None:
    path.write_text('{"child_paths": {}}')


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "cache"


def write(key: str = "KEY") -> VerifiedCache:
    cache = VerifiedCache(key)
    cache.put_group("kernel.json", {name: cache.put(data, name) for name, data in FILES.items()})
    return cache


def read(key: str = "KEY") -> dict[str, bytes] | None:
    found = VerifiedCache(key).get_group("kernel.json")
    return found and {name: pathlib.Path(path).read_bytes() for name, path in found.items()}


def test_an_entry_is_found_again(folder: pathlib.Path) -> None:
    assert read() is None
    write()
    assert read() == FILES
    assert read("OTHER") is None
    assert sorted(path.name for path in (folder / "KEY").iterdir()) == ["__grp__kernel.json", *sorted(FILES)]


@pytest.mark.parametrize("damage", [flip, halve, os.unlink, become_a_folder])
@pytest.mark.parametrize("name", [*FILES, "__grp__kernel.json"])
def test_a_damaged_file_is_written_again(
    name: str, damage: Callable[[pathlib.Path], None], folder: pathlib.Path
) -> None:
    write()
    damage(folder / "KEY" / name)
    assert read() is None
    cache = write()
    assert VerifiedCache.get_group(cache, "kernel.json") is not None
    if damage is not become_a_folder:
        assert read() == FILES


def test_every_flipped_bit_of_a_record_is_seen(folder: pathlib.Path) -> None:
    write()
    record = folder / "KEY" / "__grp__kernel.json"
    whole = record.read_bytes()
    for place in range(len(whole)):
        record.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert read() is None, place


def test_an_entry_of_another_kernel_or_another_triton_is_not_used(folder: pathlib.Path) -> None:
    write()
    (folder / "KEY").rename(folder / "OTHER")
    assert read("OTHER") is None
    as_triton_writes_it(folder / "OTHER" / "__grp__kernel.json")
    assert read("OTHER") is None


def test_a_folder_that_cannot_be_written_to_does_not_matter(folder: pathlib.Path) -> None:
    folder.write_text("a file")
    cache = write()
    found = cache.get_group("kernel.json")
    assert found is not None
    assert pathlib.Path(found["kernel.cubin"]).read_bytes() == FILES["kernel.cubin"]
    assert folder.read_text() == "a file"
