"""Reads memory that may be a mapped file without making the file's pages part of this process.

Bytes that were not changed since they were mapped come from the file, into one small buffer: what is mapped stays
where it is, so that reading a model of any size takes no memory. Anything else is read where it lies.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import dataclasses
import mmap
import os
import stat
from collections.abc import Iterator

from etcuda.errors import SaveError

CHUNK = 8 << 20
_PAGE = mmap.PAGESIZE
# Of an entry of /proc/self/pagemap: in memory, swapped out, of a file or shared.
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61


@dataclasses.dataclass(frozen=True)
class _Mapping:
    """Addresses, and the file behind them: device, inode, path, and the offset of the first of them in it."""

    start: int
    stop: int
    offset: int
    device: int
    inode: int
    path: str


def read_memory(address: int, nbytes: int, chunk: int = CHUNK) -> Iterator[memoryview]:
    """The bytes from ``address`` on, in pieces of at most ``chunk``; each is good until the next is asked for.

    Raises:
        SaveError: the file that is mapped there is shorter than it was.
    """
    with contextlib.ExitStack() as stack:
        pages = _open(stack, "/proc/self/pagemap")
        files: dict[_Mapping, int | None] = {}
        buffer = bytearray(min(chunk, nbytes))
        mappings = _mappings(address, nbytes) if pages is not None else []
        stop = address + nbytes
        while address < stop:
            mapping = next((each for each in mappings if each.start <= address < each.stop), None)
            end = min(address + chunk, stop, _end(address, mapping, mappings))
            size = end - address
            if mapping is not None and mapping not in files:
                files[mapping] = _open_mapped(stack, mapping)
            file = files[mapping] if mapping is not None else None
            if mapping is None or file is None or pages is None or _is_changed(pages, address, end):
                yield memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
            else:
                target = memoryview(buffer)[:size]
                _read(file, target, mapping.offset + address - mapping.start, mapping.path)
                yield target
            address = end


def _end(address: int, mapping: _Mapping | None, mappings: list[_Mapping]) -> int:
    """Where what holds for ``address`` ends."""
    if mapping is not None:
        return mapping.stop
    return min((each.start for each in mappings if each.start > address), default=1 << 64)


def _mappings(address: int, nbytes: int) -> list[_Mapping]:
    """Files that are mapped into the range."""
    found = []
    with open("/proc/self/maps") as file:
        for line in file:
            span, _, offset, device, inode, *path = line.rstrip("\n").split(None, 5)
            start, stop = (int(each, 16) for each in span.split("-"))
            if start >= address + nbytes:
                break
            if stop > address and inode != "0" and path and path[0].startswith("/"):
                major, minor = (int(each, 16) for each in device.split(":"))
                found.append(_Mapping(start, stop, int(offset, 16), os.makedev(major, minor), int(inode), path[0]))
    return found


def _open(stack: contextlib.ExitStack, path: str) -> int | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    stack.callback(os.close, file)
    return file


def _open_mapped(stack: contextlib.ExitStack, mapping: _Mapping) -> int | None:
    """The mapped file; ``None`` if its path leads to it no more, or may not be read."""
    file = _open(stack, mapping.path)
    if file is None:
        return None
    status = os.fstat(file)
    same = (status.st_dev, status.st_ino) == (mapping.device, mapping.inode)
    return file if same and stat.S_ISREG(status.st_mode) else None


def _is_changed(pages: int, address: int, end: int) -> bool:
    """Whether a page of a mapped file is no longer the file's, but this process's own."""
    first, last = address // _PAGE, -(-end // _PAGE)
    entries = array.array("Q", os.pread(pages, (last - first) * 8, first * 8))
    if len(entries) != last - first:
        return True
    return any(entry & _SWAPPED or (entry & _PRESENT and not entry & _OF_FILE) for entry in entries)


def _read(file: int, target: memoryview, offset: int, path: str) -> None:
    done = 0
    while done < len(target):
        count = os.preadv(file, [target[done:]], offset + done)
        if count == 0:
            raise SaveError(
                f"{path}: expected the {offset + len(target)} bytes at least that it had when it was mapped, got "
                f"{offset + done}. Weights are read when they are stored: leave their file as it is until the program "
                "is saved."
            )
        done += count
