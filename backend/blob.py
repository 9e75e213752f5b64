"""The delegate blob: the bytes around the flatbuffer, written and read. docs/blob.md states the format."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Sequence

import flatbuffers
import torch

from etcuda.backend.image import DESCRIPTION_MARK
from etcuda.backend.schema.generated import delegate_generated as schema
from etcuda.errors import BlobError

FORMAT_VERSION = 2
# Of a description with steps, which a runtime that knows none refuses.
_FORMAT_VERSION_OF_STEPS = 3
MAGIC = b"ETCUDA\0\2"
_HEADER = struct.Struct("<8sIIQ32s8x")
_ALIGNMENT = 64
_IDENTIFIER = b"ETCD"

DTYPE_CODES: dict[torch.dtype, int] = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
}


@dataclasses.dataclass(frozen=True)
class ImagePart:
    """The code of a delegate, or of a part of it, and what it runs on; see ``Image`` in the schema."""

    target: str
    is_cuda: bool
    compute_capability: int
    code_kind: str
    isa: str
    data: bytes
    num_kernels: int
    part: int = 0
    shared_memory: int = 0
    largest_kernel: str = ""


def write_blob(delegate: schema.DelegateT, images: Sequence[ImagePart]) -> bytes:
    """Serialises a delegate and its code images.

    Args:
        delegate: everything but ``images`` filled in; its strings as ``str``.
        images: at least one.
    """
    delegate.formatVersion = _FORMAT_VERSION_OF_STEPS if delegate.steps else FORMAT_VERSION
    kinds = {"cubin": schema.CodeKind.cubin, "ptx": schema.CodeKind.ptx, "native": schema.CodeKind.native}
    records = []
    for image in images:
        record = schema.ImageT()
        record.target = image.target
        record.device = schema.Device.cuda if image.is_cuda else schema.Device.host
        record.computeCapability = image.compute_capability
        record.codeKind = kinds[image.code_kind]
        record.machine = "x86_64"
        record.isa = image.isa
        record.nbytes = len(image.data)
        record.sha256 = [0] * hashlib.sha256().digest_size
        record.numKernels = image.num_kernels
        record.part = image.part
        record.sharedMemory = image.shared_memory
        record.largestKernel = image.largest_kernel or None
        # A default value would not be stored, and offsets of a scalar do not change the size otherwise.
        record.offset = 1
        records.append(record)
    delegate.images = records
    offset = _aligned(_HEADER.size + len(_pack(delegate)))
    for record, image in zip(records, images, strict=True):
        record.offset = offset
        offset = _aligned(offset + len(image.data))
    # Each image holds the digest of the description, which holds the digests of the images: there as zeros.
    described = hashlib.sha256(_pack(delegate)).digest()
    bound = [image.data.replace(DESCRIPTION_MARK, described) for image in images]
    for record, data in zip(records, bound, strict=True):
        record.sha256 = list(hashlib.sha256(data).digest())
    payload = _pack(delegate)
    out = bytearray(_HEADER.pack(MAGIC, _HEADER.size, 0, len(payload), hashlib.sha256(payload).digest()))
    out += payload
    for record, data in zip(records, bound, strict=True):
        out += bytes(record.offset - len(out))
        out += data
    return bytes(out)


def read_blob(data: bytes) -> schema.DelegateT:
    """Reads the flatbuffer of a blob.

    Raises:
        BlobError: not a blob, of another version, truncated or damaged.
    """
    if len(data) < _HEADER.size:
        raise BlobError(f"delegate blob: expected at least {_HEADER.size} bytes, got {len(data)}; it is truncated.")
    magic, header_size, _flags, size, digest = _HEADER.unpack_from(data)
    if magic[:7] != MAGIC[:7]:
        raise BlobError(f"delegate blob: expected it to begin with {MAGIC[:7]!r}, got {magic[:7]!r}; not etcuda's.")
    if magic != MAGIC or header_size != _HEADER.size:
        raise BlobError(
            f"delegate blob: expected format version {MAGIC[7]}, got {magic[7]}. "
            "Export again with this version of etcuda."
        )
    payload = data[header_size : header_size + size]
    if len(payload) != size:
        raise BlobError(f"delegate blob: expected a payload of {size} bytes, got {len(payload)}; it is truncated.")
    if hashlib.sha256(payload).digest() != digest:
        raise BlobError("delegate blob: the payload does not match its SHA-256; the file is damaged, export again.")
    if payload[4:8] != _IDENTIFIER:
        raise BlobError(f"delegate blob: expected identifier {_IDENTIFIER!r}, got {payload[4:8]!r}.")
    return schema.DelegateT.InitFromPackedBuf(payload, 0)


def _pack(delegate: schema.DelegateT) -> bytes:
    builder = flatbuffers.Builder(4096)
    builder.Finish(delegate.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _aligned(offset: int) -> int:
    return (offset + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
