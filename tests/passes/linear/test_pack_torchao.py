"""Models that torchao quantised are packed at export, and compute what the converted model does."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)
from torchao.quantization.granularity import PerAxis, PerGroup

from etcuda.backend.constants import collect_constants
from etcuda.backend.weight_bytes import WeightBytes
from etcuda.kernels.weights import convert
from etcuda.kernels.weights.convert import convert_model
from etcuda.options import BackendConfig
from etcuda.passes.graph import packing
from tests.exhaustive import pairs
from tests.passes.linear.quantized_programs import (
    FUSION,
    GPU,
    HOST,
    MLP,
    calls,
    close,
    constants,
    export,
    lowered,
    make,
    runnable,
)

KERNELS = tuple(f"int{bits}_{kind}" for bits in (4, 8) for kind in ("matvec", "matvec_quantized", "matmul_reordered"))
X = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
INT4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))


def _name(value: Any) -> str:
    if isinstance(value, BackendConfig):
        return "host" if value.is_host else "sm_90"
    return str(value) if isinstance(value, str | torch.dtype) else type(value).__name__


@pytest.mark.parametrize(
    ("config", "qdata", "kernel", "target"),
    pairs(
        [
            (INT4, torch.uint8, "int4_matmul_reordered"),
            (
                IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)),
                torch.int8,
                "int8_matmul_reordered",
            ),
            (
                Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32)),
                torch.uint8,
                "int4_matvec_quantized",
            ),
            (Int8WeightOnlyConfig(version=2), torch.int8, "int8_matmul_reordered"),
        ],
        [GPU, HOST],
    ),
    ids=_name,
)
def test_weights_of_torchao_become_ours(config: Any, qdata: torch.dtype, kernel: str, target: BackendConfig) -> None:
    model = make(MLP, bias=config is INT4)
    quantize_(model, config)
    x = X[:, :4].contiguous() if "matvec" in kernel else X
    program = lowered(export(model, x), target)
    held = constants(program)
    assert {tensor.dtype for name, tensor in held.items() if name.endswith(("packed_qdata", "1_more"))} >= {qdata}
    assert not any("torchao" in str(node.target) for node in program.graph.nodes)
    if not target.is_host:
        # Gate and up are one product, but on tensor cores.
        count = 3 if "matmul" in kernel else 2
        assert [str(node.target) for node in calls(program, *KERNELS)] == [f"etcuda.{kernel}.default"] * count
    convert_model(model)
    assert close(runnable(program)(x), model(x))


def test_the_program_holds_the_packed_weights_alone() -> None:
    model = make(MLP)
    quantize_(model, INT4)
    program = lowered(export(model, X), without=FUSION)
    assert sorted({name.rsplit("_", 1)[1] for name in constants(program)}) == ["qdata", "scale"]
    assert set(program.state_dict) == set(constants(program))
    assert sum(t.nbytes for t in constants(program).values()) == sum(
        part.nbytes for layer in _converted(model) for part in layer.weight.components.values()
    )


def test_weights_are_packed_to_be_hashed_and_kept_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(MLP)
    quantize_(model, INT4)
    packed: list[str] = []
    pack = convert.from_affine

    def counted(affine: convert.Affine, name: str, **options: Any) -> Any:
        packed.append(name)
        return pack(affine, name, **options)

    monkeypatch.setattr(convert, "from_affine", counted)
    programs = [lowered(export(model, x)) for x in (X, X[:1].clone())]
    # Once to know what there is, for both methods.
    names = sorted(set(packed))
    assert len(names) == 3
    assert sorted(packed) == sorted(names)
    known: dict[int, WeightBytes] = {}
    tables = [collect_constants(program, {}, known) for program in programs]
    assert sorted(packed) == sorted(2 * names)
    assert len({id(entry.content) for table in tables for entry in table.storages}) == 4
    held = [entry.content.read() for entry in tables[0].storages]
    assert sorted(packed) == sorted(3 * names)
    gate, up, down = (layer.weight.components for layer in _converted(model))
    wanted = [torch.cat([gate[part], up[part]]) for part in ("qdata", "scale")] + [down["qdata"], down["scale"]]
    assert sorted(held) == sorted(each.contiguous().numpy().tobytes() for each in wanted)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_rows_of_a_mapped_file_are_read_in_the_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = tmp_path / "integers"
    wanted = torch.randint(-128, 128, (100, 4096), dtype=torch.int8)
    wanted.numpy().tofile(path)
    mapped = torch.from_file(str(path), shared=False, size=wanted.numel(), dtype=torch.int8).reshape(wanted.shape)
    monkeypatch.setattr(packing, "CHUNK", 4096 * step)
    rows = packing._Rows(mapped)
    for start, stop in ((0, 2), (2, 9), (9, 9), (9, 100), (4, 7), (99, 100)):
        assert torch.equal(rows.read(start, stop), wanted[start:stop])
    found = pathlib.Path("/proc/self/smaps").read_text().partition(str(path))[2]
    assert found.partition("Rss:")[2].split()[0] == "0"
    # What is no dense block of memory is read as it lies.
    assert torch.equal(packing._Rows(mapped.t()).read(1, 3), wanted.t()[1:3])


def _converted(model: Any) -> list[Any]:
    convert_model(model)
    return [model.gate, model.up, model.down]


def test_a_dynamic_number_of_rows() -> None:
    model = make(MLP)
    quantize_(model, INT4)
    program = lowered(export(model, X, dynamic=({0: Dim("batch", max=9), 1: Dim("length", max=99)},)))
    run = runnable(program)
    convert_model(model)
    for shape in ((2, 3), (4, 40)):
        x = torch.randn(*shape, 64).to(torch.bfloat16)
        assert close(run(x), model(x))


class Tied(nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(48, 64)
        self.head = nn.Linear(64, 48, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x))
        return out


@pytest.mark.parametrize("target", [GPU, HOST], ids=["sm_90", "host"])
def test_a_look_up_and_a_product_share_a_weight(target: BackendConfig) -> None:
    model = make(Tied)
    quantize_(model, INT4, lambda module, name: isinstance(module, nn.Embedding))
    model.head.weight = model.table.weight
    x = torch.randint(0, 48, (2, 5))
    program = lowered(export(model, x), target)
    assert sorted(name.rsplit("_", 1)[1] for name in constants(program)) == ["qdata", "scale"]
    assert not any("dequantize_affine" in str(node.target) for node in program.graph.nodes)
    convert_model(model)
    assert close(runnable(program)(x), model(x))


class Added(nn.Module):
    """Reads its weight for something that is no product."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1, :1] + self.fc.weight.dequantize()


class Odd(nn.Module):
    """Groups of 8: no layout of ours has them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


@pytest.mark.parametrize(
    ("kind", "group", "reason"),
    [
        (Added, 32, r"left as it is: expected products and look-ups to read it, got"),
        (Odd, 8, r"left as it is: .*fc.*: expected groups that are a multiple of one of 32, 64, 128, 256, got 8"),
    ],
)
def test_what_cannot_be_packed_is_left_alone_with_a_reason(
    kind: type[nn.Module], group: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "etcuda")
    model = make(kind)
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group)))
    x = X[:, :, :64].contiguous()
    program = lowered(export(model, x))
    assert not calls(program)
    assert re.search(reason, caplog.text)
    assert close(runnable(program)(x), model(x))
