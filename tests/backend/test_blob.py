from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcuda.backend.blob import MAGIC, ImagePart, read_blob, write_blob
from etcuda.backend.image import DESCRIPTION_MARK
from etcuda.backend.inspect import describe, inspect_program
from etcuda.backend.schema.generated import delegate_generated as schema
from etcuda.errors import BlobError


def make_blob(images: int = 2) -> bytes:
    delegate = schema.DelegateT()
    delegate.method = "forward"
    value = schema.ValueT()
    value.name, value.dtype, value.dimOrder = "x", schema.DType.float32, [0, 1]
    value.dims = []
    for low, high, size in ((1, 32, 0), (64, 64, -1)):
        dim = schema.DimT()
        dim.min, dim.max, dim.size = low, high, size
        value.dims.append(dim)
    delegate.inputs, delegate.outputs = [value], [value]
    parts = [
        ImagePart(f"sm_{80 + i}", True, 80 + i, "cubin", "x86-64", bytes([i]) * (100 + i), 3, 0, 1000 * i, "conv" * i)
        for i in range(images)
    ]
    return write_blob(delegate, parts)


def test_round_trip() -> None:
    blob = make_blob()
    delegate = read_blob(blob)
    assert delegate.method == b"forward"
    for i, image in enumerate(delegate.images):
        assert image.offset % 64 == 0
        assert blob[image.offset : image.offset + image.nbytes] == bytes([i]) * (100 + i)
    info = describe(blob)
    assert info.inputs[0].dims == ((1, 32), (64, 64))
    assert [image.target for image in info.images] == ["sm_80", "sm_81"]
    assert [(image.shared_memory, image.largest_kernel) for image in info.images] == [(0, ""), (1000, "conv")]


def test_an_image_holds_the_digest_of_its_description() -> None:
    code = b"code" + DESCRIPTION_MARK + b"more code"
    delegate = schema.DelegateT()
    delegate.method, delegate.inputs, delegate.outputs = "forward", [], []
    blob = write_blob(delegate, [ImagePart("host", False, 0, "native", "x86-64", code, 1)])
    (image,) = read_blob(blob).images
    data = blob[image.offset : image.offset + image.nbytes]
    assert (data[:4], data[36:]) == (b"code", b"more code")
    assert hashlib.sha256(data).digest() == bytes(image.sha256)
    # The description ends before the image; its only other digest is the one that counts as zeros.
    description = blob[64 : 64 + int.from_bytes(blob[16:24], "little")]
    assert description.count(bytes(image.sha256)) == 1
    assert hashlib.sha256(description.replace(bytes(image.sha256), bytes(32))).digest() == data[4:36]


def test_writing_is_deterministic() -> None:
    assert make_blob() == make_blob()


@pytest.mark.parametrize("size", [0, 7, 63, 64, 100])
def test_truncated(size: int) -> None:
    with pytest.raises(BlobError, match="truncated"):
        read_blob(make_blob()[:size])


def test_foreign_and_other_version() -> None:
    with pytest.raises(BlobError, match="not etcuda's"):
        read_blob(b"\0" * 200)
    with pytest.raises(BlobError, match=r"format version 2, got 9\. Export again"):
        read_blob(MAGIC[:7] + b"\x09" + make_blob()[8:])
    with pytest.raises(BlobError, match=r"format version 2, got 1\. Export again"):
        read_blob(MAGIC[:7] + b"\x01" + make_blob()[8:])


BLOB = make_blob()
PAYLOAD_END = 64 + int.from_bytes(BLOB[16:24], "little")


@given(st.integers(64, PAYLOAD_END - 1), st.integers(0, 7))
def test_any_flipped_bit_of_the_payload_is_noticed(position: int, bit: int) -> None:
    damaged = bytearray(BLOB)
    damaged[position] ^= 1 << bit
    with pytest.raises(BlobError, match="damaged"):
        read_blob(bytes(damaged))


def test_inspect_refuses_what_is_no_program() -> None:
    with pytest.raises(BlobError, match=r"ExecuTorch \.pte"):
        inspect_program(b"PK\x03\x04 not a program")
