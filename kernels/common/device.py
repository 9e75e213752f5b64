"""The GPU that a kernel is chosen for."""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import torch

from etcuda.errors import KernelArgumentError


class Device(Protocol):
    """What the choice of a configuration depends on: a local GPU, or a target of export. Sizes in bytes."""

    @property
    def arch(self) -> str:
        """The architecture: ``sm_90``."""

    @property
    def num_sms(self) -> int:
        """Streaming multiprocessors."""

    @property
    def shared_memory_per_block(self) -> int:
        """The most shared memory that one block may use."""

    @property
    def l2_bytes(self) -> int:
        """The L2 cache."""


@dataclasses.dataclass(frozen=True)
class LocalDevice:
    """The local GPU."""

    arch: str
    num_sms: int
    shared_memory_per_block: int
    l2_bytes: int = 0

    @classmethod
    @functools.cache
    def current(cls) -> LocalDevice:
        """The current device.

        Raises:
            KernelArgumentError: there is no GPU.
        """
        if not torch.cuda.is_available():
            raise KernelArgumentError("expected an NVIDIA GPU, found none. Run this where there is one.")
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        shared = int(getattr(properties, "shared_memory_per_block_optin"))  # noqa: B009  torch's stub lacks it
        arch = f"sm_{properties.major}{properties.minor}"
        return cls(arch, properties.multi_processor_count, shared, properties.L2_cache_size)


def supports_pdl(device: Device) -> bool:
    """Whether the GPU can launch a kernel while the one in front of it runs (programmatic dependent launch)."""
    return int(device.arch.removeprefix("sm_")) >= 90
