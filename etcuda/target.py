"""What the code is compiled for: a stand-in for the device, so that no GPU is needed."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Literal

from etcuda.errors import TargetError

log = logging.getLogger(__name__)

CodeKind = Literal["cubin", "ptx", "native"]

HOST: Literal["host"] = "host"


def _expect(holds: object, name: str, expected: str, got: object) -> None:
    if not holds:
        raise TargetError(f"CudaTarget: {name}: expected {expected}, got {got!r}.")


@dataclasses.dataclass(frozen=True)
class CudaTarget:
    """One GPU architecture, with the properties that code generation asks for.

    Sizes are bytes, clocks kHz, ``memory_bandwidth`` bytes per second. Figures are those of the largest common
    part of each architecture; they steer choices and never correctness.

    Raises:
        TargetError: a property is not what it can be.
    """

    arch: str
    name: str
    num_sms: int
    shared_memory_per_block: int
    shared_memory_per_sm: int
    max_threads_per_sm: int
    l2_bytes: int
    total_memory: int
    memory_bandwidth: float
    clock_khz: int
    registers_per_sm: int = 65536
    max_threads_per_block: int = 1024
    warp_size: int = 32
    code_kind: CodeKind = "cubin"

    def __post_init__(self) -> None:
        digits = isinstance(self.arch, str) and re.fullmatch(r"sm_(\d{2,3})", self.arch)
        _expect(digits and int(digits[1]) >= 80, "arch", "'sm_80' or newer, without a letter behind it", self.arch)
        _expect(isinstance(self.name, str), "name", "a string", self.name)
        _expect(self.code_kind in ("cubin", "ptx"), "code_kind", "'cubin' or 'ptx'", self.code_kind)
        _expect(self.warp_size == 32, "warp_size", "32", self.warp_size)
        for name in ("num_sms", "shared_memory_per_block", "shared_memory_per_sm", "max_threads_per_sm", "l2_bytes",
                     "total_memory", "clock_khz", "registers_per_sm", "max_threads_per_block"):  # fmt: skip
            value = getattr(self, name)
            _expect(isinstance(value, int) and not isinstance(value, bool) and value > 0, name, "an integer > 0", value)
        bandwidth = self.memory_bandwidth
        is_number = isinstance(bandwidth, int | float) and 0 < bandwidth < float("inf")
        _expect(is_number, "memory_bandwidth", "bytes per second, more than 0", bandwidth)

    @property
    def compute_capability(self) -> int:
        """The two-digit number of the architecture: 90 for ``sm_90``."""
        return int(self.arch.removeprefix("sm_"))

    @property
    def major(self) -> int:
        """First digit of the compute capability."""
        return self.compute_capability // 10

    @property
    def minor(self) -> int:
        """Second digit of the compute capability."""
        return self.compute_capability % 10


_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

# Source: CUDA C++ Programming Guide, "Compute Capabilities", and the vendor's data sheets of the named part.
TARGETS: dict[str, CudaTarget] = {
    t.arch: t
    for t in (
        CudaTarget("sm_80", "NVIDIA A100", 108, 163 * _KIB, 164 * _KIB, 2048, 40 * _MIB, 80 * _GIB, 2.0e12, 1410000),
        CudaTarget("sm_86", "NVIDIA A40", 84, 99 * _KIB, 100 * _KIB, 1536, 6 * _MIB, 48 * _GIB, 0.70e12, 1740000),
        CudaTarget("sm_89", "NVIDIA L40S", 142, 99 * _KIB, 100 * _KIB, 1536, 96 * _MIB, 48 * _GIB, 0.86e12, 2520000),
        CudaTarget("sm_90", "NVIDIA H200", 132, 227 * _KIB, 228 * _KIB, 2048, 60 * _MIB, 140 * _GIB, 4.8e12, 1980000),
        CudaTarget("sm_100", "NVIDIA B200", 148, 227 * _KIB, 228 * _KIB, 2048, 126 * _MIB, 180 * _GIB, 8.0e12, 1965000),
        CudaTarget(
            "sm_120", "NVIDIA RTX PRO 6000", 188, 99 * _KIB, 100 * _KIB, 1536, 128 * _MIB, 96 * _GIB, 1.79e12, 2430000
        ),
    )
}


def _least(name: str) -> int:
    return min(int(getattr(target, name)) for target in TARGETS.values())


# Code of sm_80 as PTX runs on every later GPU, if it keeps to what the least of them has. Its speed is that of an A100.
PORTABLE = dataclasses.replace(
    TARGETS["sm_80"],
    code_kind="ptx",
    shared_memory_per_block=_least("shared_memory_per_block"),
    shared_memory_per_sm=_least("shared_memory_per_sm"),
    max_threads_per_sm=_least("max_threads_per_sm"),
    registers_per_sm=_least("registers_per_sm"),
    max_threads_per_block=_least("max_threads_per_block"),
)


def resolve_target(target: str | CudaTarget) -> CudaTarget | Literal["host"]:
    """Turns what a user wrote into a target.

    Args:
        target: ``"auto"`` (the local GPU's architecture; without a GPU the portable target), ``"host"``,
            ``"sm_XY"``, ``"portable"``, or a ``CudaTarget``.

    Raises:
        TargetError: the string names no target, or the local GPU is older than compute capability 8.0.
    """
    if isinstance(target, CudaTarget):
        return target
    if not isinstance(target, str):
        raise TargetError(f"target: expected a string or a CudaTarget, got {type(target).__name__}.")
    if target == HOST:
        return HOST
    if target == "portable":
        return PORTABLE
    if target == "auto":
        return _local_target()
    if target in TARGETS:
        return TARGETS[target]
    hint = ""
    if match := re.fullmatch(r"(?:sm_?|compute_?)?(\d)\.?(\d)(\d?)a?", target):
        guess = "sm_" + "".join(match.groups())
        hint = f" Did you mean {guess!r}?" if guess in TARGETS else ""
    known = ", ".join(["auto", "portable", HOST, *TARGETS])
    raise TargetError(f"target {target!r} is not known.{hint} Expected one of {known}, or a CudaTarget of your own.")


def _local_target() -> CudaTarget:
    import torch

    if not torch.cuda.is_available():
        log.info(
            "target 'auto': no GPU here, so compiling the portable target (sm_80 code as PTX, which the driver of any "
            "newer GPU translates). Pass target='sm_90' or the like for code made for one GPU."
        )
        return PORTABLE
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{major}{minor}"
    if arch in TARGETS:
        return TARGETS[arch]
    if (major, minor) < (8, 0):
        raise TargetError(
            f"the local GPU is {arch}; expected compute capability 8.0 or newer. "
            "Pass target='sm_80' or newer to export for another GPU, or target='host'."
        )
    log.info("target 'auto': the local GPU is %s, which has no entry of its own; compiling the portable target.", arch)
    return PORTABLE
