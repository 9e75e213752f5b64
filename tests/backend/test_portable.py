"""A portable program keeps to what the least of the GPUs that it is for has: every kernel of it, whoever wrote it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import re
import shutil
import subprocess

import pytest
import torch
import triton
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from etcuda import CudaPartitioner, Int4CoalescedConfig, Int8CoalescedConfig, quantize_weights
from etcuda.backend.inductor.device import resource_usage
from etcuda.backend.inductor.launchers import KernelResources
from etcuda.backend.inspect import inspect_program
from etcuda.backend.worker import client
from etcuda.backend.worker.job import JobResult, read_result
from etcuda.errors import CompileError
from etcuda.target import PORTABLE, TARGETS
from tests.exhaustive import only

TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def test_limits_are_the_least_of_all_gpus() -> None:
    for target in TARGETS.values():
        for name in ("shared_memory_per_block", "shared_memory_per_sm", "max_threads_per_sm", "registers_per_sm"):
            assert getattr(PORTABLE, name) <= getattr(target, name), (name, target.arch)
    assert (PORTABLE.shared_memory_per_block, PORTABLE.max_threads_per_sm) == (101376, 1536)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (KernelResources(32, 0, 101377, 4), "at most 101376 bytes of shared memory a block, got 101377"),
        (KernelResources(32, 0, 0, 33), "at most 1024 threads a block, got 1056"),
        (KernelResources(129, 0, 0, 16), "at most 65536 registers a block, got 69632"),
    ],
)
def test_a_kernel_that_wants_more_is_refused(resources: KernelResources, message: str) -> None:
    KernelResources(128, 0, 101376, 16).check("kernel", PORTABLE)
    with pytest.raises(CompileError, match=f"kernel k, for all GPUs of a portable program: expected {message}"):
        resources.check("k", PORTABLE)


class Layers(nn.Module):
    """Calls that go to kernels of every family, and to those that Inductor generates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 128, 3, padding=1)
        self.half_conv = nn.Conv2d(128, 128, 3, stride=2).to(torch.bfloat16)
        self.gate, self.up = (nn.Linear(512, 1024, bias=False, dtype=torch.bfloat16) for _ in range(2))
        self.down = nn.Linear(1024, 512, bias=False, dtype=torch.bfloat16)
        self.norm = nn.RMSNorm(512, dtype=torch.bfloat16)
        self.linear = nn.Linear(512, 512, dtype=torch.bfloat16)

    def forward(self, image: Tensor, x: Tensor, q: Tensor, kv: Tensor, long: Tensor) -> tuple[Tensor, ...]:
        normed = self.norm(x)
        attended = functional.scaled_dot_product_attention
        return (
            self.half_conv(self.conv(image).to(torch.bfloat16)),
            self.down(functional.silu(self.gate(normed)) * self.up(normed)),
            self.linear(x),
            attended(q, kv, kv, is_causal=True, enable_gqa=True),
            attended(q[..., :128], kv[..., :128], kv[..., :128], is_causal=True, enable_gqa=True),
            long.softmax(-1) + long.var(-1, keepdim=True),
            long.cumsum(-1) + long.argmax(-1, keepdim=True),
            functional.layer_norm(long, (long.shape[-1],)).to(torch.bfloat16) @ long.T.to(torch.bfloat16),
        )


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Kernels of a program by name: what their launches ask for, and their PTX."""

    resources: dict[str, KernelResources]
    ptx: dict[str, str]
    code_kind: str


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Of a portable program of all families."""
    kept, results = tmp_path_factory.mktemp("kept"), []

    def keep_and_read(folder: pathlib.Path) -> JobResult:
        shutil.copytree(folder / "build" / "image", kept, dirs_exist_ok=True)
        results.append(read_result(folder))
        return results[-1]

    torch.manual_seed(0)
    model = Layers().eval().requires_grad_(False)
    quantize_weights(model, Int8CoalescedConfig(), lambda module, name: name == "linear")
    quantize_weights(model, Int4CoalescedConfig(), lambda module, name: name in ("gate", "up", "down"))
    tokens = Dim("tokens", min=2, max=2048)
    inputs = (
        torch.zeros(2, 64, 56, 56), torch.zeros(256, 512, dtype=torch.bfloat16),
        torch.zeros(1, 8, 256, 256, dtype=torch.bfloat16), torch.zeros(1, 2, 256, 256, dtype=torch.bfloat16),
        torch.zeros(64, 5000),
    )  # fmt: skip
    program = torch.export.export(model, inputs, dynamic_shapes=(None, {0: tokens}, {2: tokens}, {2: tokens}, None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "read_result", keep_and_read)
        lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner("portable")])
    (delegate,) = inspect_program(bytes(lowered.to_executorch().buffer)).methods[0].delegates
    (result,) = results
    return Kernels(
        {name: KernelResources(**found) for name, found in result.resources.items()},
        {path.stem: path.read_bytes().rstrip(b"\0").decode() for path in kept.glob("*.bin")},
        delegate.images[0].code_kind,
    )


@pytest.mark.slow
@pytest.mark.xdist_group("portable")
def test_launches_fit_every_gpu(kernels: Kernels) -> None:
    assert kernels.code_kind == "ptx"
    assert kernels.resources.keys() == kernels.ptx.keys()
    entries = "\n".join(re.findall(r"\.visible \.entry (\w+)", "\n".join(kernels.ptx.values())))
    for family in ("attention_split_kernel", "attention_tiled", "matmul", "conv", "triton_red_", "triton_poi_"):
        assert family in entries, entries
    assert max(each.shared_bytes for each in kernels.resources.values()) > 48 << 10
    for name, each in kernels.resources.items():
        for target in TARGETS.values():
            each.check(name, target)


@pytest.mark.slow
@pytest.mark.xdist_group("portable")
@pytest.mark.parametrize("arch", [only(arch in ("sm_80", "sm_89", "sm_120"), arch) for arch in TARGETS])
def test_the_driver_of_every_gpu_finds_what_it_needs(arch: str, kernels: Kernels, tmp_path: pathlib.Path) -> None:
    target = TARGETS[arch]
    assembler = TOOLS / ("ptxas-blackwell" if target.major >= 10 else "ptxas")

    def assemble(name: str) -> KernelResources:
        source, cubin = tmp_path / f"{name}.ptx", tmp_path / f"{name}.cubin"
        source.write_text(kernels.ptx[name])
        subprocess.run([assembler, f"-arch={arch}", source, "-o", cubin], check=True, capture_output=True)
        registers, spilled = resource_usage(cubin.read_bytes())
        launched = kernels.resources[name]
        return dataclasses.replace(launched, registers=registers, spilled_bytes=spilled)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name, found in zip(kernels.ptx, pool.map(assemble, kernels.ptx), strict=True):
            found.check(name, target)
