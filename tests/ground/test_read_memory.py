"""Memory is read from the file that is mapped there, but for what was changed since."""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib

import pytest
import torch

from etcuda import read_memory as module
from etcuda.errors import SaveError
from etcuda.read_memory import read_memory

PAGE = mmap.PAGESIZE
SIZE = 8 * PAGE + 100


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file of random bytes."""
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def mapped(path: pathlib.Path, shared: bool = False) -> torch.Tensor:
    """Its bytes as a tensor, as safetensors and ``torch.load(mmap=True)`` map them."""
    return torch.from_file(str(path), shared=shared, size=path.stat().st_size, dtype=torch.uint8)


def read(tensor: torch.Tensor, chunk: int = module.CHUNK) -> bytes:
    return b"".join(bytes(each) for each in read_memory(tensor.data_ptr(), tensor.nbytes, chunk))


def resident(tensor: torch.Tensor) -> int:
    """Pages of the tensor that are this process's."""
    first, last = tensor.data_ptr() // PAGE, -(-(tensor.data_ptr() + tensor.nbytes) // PAGE)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(first * 8)
        entries = file.read((last - first) * 8)
    return sum(entries[index * 8 + 7] >> 7 for index in range(last - first))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("chunk", [1, 999, PAGE, module.CHUNK])
def test_a_mapped_file_is_read_without_its_pages(path: pathlib.Path, shared: bool, chunk: int) -> None:
    tensor = mapped(path, shared)
    assert resident(tensor) == 0
    part = tensor[3 : SIZE - 5] if chunk > 1 else tensor[3:300]
    assert read(part, chunk) == path.read_bytes()[3 : 3 + part.nbytes]
    assert resident(tensor) == 0


@pytest.mark.parametrize("chunk", [PAGE // 2, 3 * PAGE, module.CHUNK])
def test_what_was_changed_is_read_as_it_is(path: pathlib.Path, chunk: int) -> None:
    tensor = mapped(path)
    wanted = bytearray(path.read_bytes())
    for place in (5 * PAGE + 7, SIZE - 1):
        tensor[place] += 1
        wanted[place] = (wanted[place] + 1) % 256
    assert bytes(wanted) != path.read_bytes()
    assert read(tensor, chunk) == wanted
    # The file's own bytes are as they were.
    assert path.read_bytes() == bytes(mapped(path).numpy())


def test_a_change_through_a_shared_mapping_is_read(path: pathlib.Path) -> None:
    tensor = mapped(path, shared=True)
    tensor[PAGE] += 1
    assert read(tensor) == tensor.numpy().tobytes()


def test_ordinary_memory_and_a_file_beside_each_other(path: pathlib.Path) -> None:
    # One range of addresses: two pages of memory, two of the file, two of memory.
    with mmap.mmap(-1, 6 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as around, open(path, "rb") as file:
        around[:] = os.urandom(6 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(around))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        fixed = 0x10
        got = libc.mmap(
            ctypes.c_void_p(address + 2 * PAGE), ctypes.c_size_t(2 * PAGE), mmap.PROT_READ,
            mmap.MAP_PRIVATE | fixed, file.fileno(), ctypes.c_long(PAGE),
        )  # fmt: skip
        assert got == address + 2 * PAGE
        wanted = ctypes.string_at(address, 6 * PAGE)
        assert wanted[2 * PAGE : 4 * PAGE] == path.read_bytes()[PAGE : 3 * PAGE]
        for chunk in (PAGE + 1, module.CHUNK):
            assert b"".join(bytes(each) for each in read_memory(address + 5, 6 * PAGE - 9, chunk)) == wanted[5:-4]


def test_a_file_that_is_gone_or_another_is_read_where_it_is_mapped(path: pathlib.Path) -> None:
    tensor, wanted = mapped(path), path.read_bytes()
    path.unlink()
    assert read(tensor) == wanted
    path.write_bytes(bytes(SIZE))
    assert read(tensor) == wanted


def test_without_a_page_map_memory_is_read_where_it_is(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = module._open
    monkeypatch.setattr(module, "_open", lambda stack, name: None if "pagemap" in name else opened(stack, name))
    tensor = mapped(path)
    assert read(tensor) == path.read_bytes()
    assert resident(tensor) > 0


def test_a_file_that_became_shorter_is_an_error(path: pathlib.Path) -> None:
    tensor = mapped(path)
    os.truncate(path, 2 * PAGE)
    with pytest.raises(
        SaveError, match=rf"weights.bin: expected the {SIZE} bytes at least .* got {2 * PAGE}\. .*leave"
    ):
        read(tensor)


def test_nothing_is_nothing() -> None:
    assert list(read_memory(0, 0)) == []
