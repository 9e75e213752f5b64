"""Models with int4 weights: exported here, run on the host against PyTorch; their files are as small as they should
be, and programs for a GPU that is not here hold the kernels."""

from __future__ import annotations

import pathlib
import re

import pytest
import torch
from torch import Tensor, nn

from etcuda import CompileOptions, Int4CoalescedConfig, quantize_weights
from etcuda.backend.inspect import inspect_program
from etcuda.kernels.activations.choose import table as activation_table
from etcuda.kernels.activations.choose.configs import ActivationConfig
from etcuda.kernels.activations.choose.table import Entry
from etcuda.kernels.activations.problem import ActivationProblem
from etcuda.kernels.weights.int4_tensor import Int4CoalescedTensor
from examples.bundle import make_bundle
from examples.export import export_case, export_program
from examples.models import INT4_CASES
from tests.conftest import Export
from tests.exhaustive import only
from tests.models.conftest import Run


@pytest.mark.slow
@pytest.mark.parametrize("name", [only(name == "decoder-int4-bf16", name) for name in sorted(INT4_CASES)])
def test_matches_pytorch_on_the_host(name: str, exported: Export, run_case: Run) -> None:
    verdict = make_bundle(name).verdict(run_case(exported(name, "host"), name))
    assert verdict.passed, verdict


def test_the_model_is_quantised_throughout() -> None:
    model = INT4_CASES["decoder-int4-bf16"].model()
    types = {type(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    assert types == {Int4CoalescedTensor}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoder-int4-bf16"])
def test_products_go_to_the_kernels(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pte"
    record = export_case(name, "sm_90", path, CompileOptions(progress=False))
    assert record.delegated == record.nodes
    for method in inspect_program(path).methods:
        (delegate,) = method.delegates
        (image,) = delegate.images
        few = {"stepped_kernel", "stepped_pdl", "resident_kernel", "resident_pdl"}
        assert few & set(image.kernels)
        assert bool({"matmul_kernel", "matmul_pdl"} & set(image.kernels)) == (method.name == "prefill")
        # A kernel that reads and writes one thing and has no operator's name is a copy.
        assert not [kernel for kernel in image.kernels if re.fullmatch(r"triton_poi_fused_\d+(_pdl)?", kernel)]


@pytest.mark.slow
def test_activations_of_few_tokens_are_quantized_where_they_are_computed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pte"
    model = INT4_CASES["llama-int4-bf16"].model()
    program = torch.export.export(model, (torch.arange(4).unsqueeze(0),))
    export_program({"forward": program}, "sm_90", path, CompileOptions(progress=False))
    (delegate,) = inspect_program(path).methods[0].delegates
    (image,) = delegate.images
    assert {"rms_norm_quantize_pdl", "gate_quantize_pdl", "stepped_pdl"} <= set(image.kernels)
    # One norm is left, behind the look-up of the tokens; the others are not generated.
    assert len([kernel for kernel in image.kernels if "rsqrt" in kernel]) <= 1
    assert not [kernel for kernel in image.kernels if re.fullmatch(r"triton_poi_fused_\d+(_pdl)?", kernel)]


# The decision is tested in tests/passes/linear/test_quantize_one_row.py.
@pytest.mark.exhaustive
@pytest.mark.slow
def test_one_token_is_quantized_where_it_is_computed_if_that_was_measured(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizing = Entry("quantize", ActivationProblem(1, 2048), ((ActivationConfig(1, 1), 1e3),), 1)
    monkeypatch.setattr(activation_table, "load", lambda arch: activation_table.Table(arch, {}, (quantizing,)))
    path = tmp_path / "model.pte"
    case = INT4_CASES["decoder-int4-bf16"]
    methods = {"decode": case.export(case.model())["decode"]}
    export_program(methods, "sm_90", path, CompileOptions(progress=False))
    (decode,) = inspect_program(path).methods
    kernels = set(decode.delegates[0].images[0].kernels)
    assert {"rms_norm_quantize_pdl", "gate_quantize_pdl", "stepped_pdl"} <= kernels
    assert not [kernel for kernel in kernels if re.fullmatch(r"triton_poi_fused_\d+(_pdl)?", kernel)]


@pytest.mark.slow
def test_a_bound_on_registers_reaches_the_compiled_kernel(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etcuda.backend.inductor.device import resource_usage
    from etcuda.kernels.linear.choose.configs import MatmulConfig
    from etcuda.kernels.linear.choose.select import Choice
    from etcuda.passes.linear import choose as choose_linear

    def registers(most: int) -> int:
        config = MatmulConfig(64, 16, 8, 4, 3, 2, most)
        monkeypatch.setattr(choose_linear, "choose_matmul", lambda *a, **k: Choice("matmul", config, "this test"))
        path = tmp_path / f"{most}.pte"
        model = nn.Linear(512, 1024, bias=False).to(torch.bfloat16).eval().requires_grad_(False)
        quantize_weights(model, Int4CoalescedConfig())
        program = torch.export.export(model, (torch.zeros(16, 512, dtype=torch.bfloat16),))
        export_program({"forward": program}, "sm_90", path, CompileOptions(progress=False))
        data = path.read_bytes()
        # ELF files for a GPU, of machine 190, as they lie in the program.
        starts = [each.start() for each in re.finditer(b"\x7fELF", data) if data[each.start() + 18] == 190]
        assert len(starts) == 3
        return max(resource_usage(data[start:])[0] for start in starts)

    assert registers(0) > 128
    assert registers(128) == 128


HIDDEN, INNER = 2048, 6144  # 38 million weights: a small layer of a language model.


class Wide(nn.Module):
    """Nearly all weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return out


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        (Int4CoalescedConfig(), 4.75),
        # What a weight of each format holds is in tests/kernels/formats.
        only(False, Int4CoalescedConfig(offset="minimum", scale_storage="codes"), 4.625),
        only(False, Int4CoalescedConfig(group_size=128, offset="symmetric"), 4.125),
    ],
    ids=str,
)
def test_the_file_is_as_large_as_the_bits_say(config: Int4CoalescedConfig, bits: float, tmp_path: pathlib.Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Wide().to(torch.bfloat16).eval().requires_grad_(False)
    quantize_weights(model, config)
    assert model.up.weight.format.bits_per_weight() == bits
    path = tmp_path / "model.pte"
    program = torch.export.export(model, (torch.zeros(2, HIDDEN, dtype=torch.bfloat16),))
    export_program({"forward": program}, "host", path)
    (delegate,) = inspect_program(path).methods[0].delegates
    weights = 3 * INNER * HIDDEN * bits / 8
    assert sum(storage.nbytes for storage in delegate.storages) == weights
    # All of the file: its code, about 250 KB, does not grow with the weights.
    assert weights <= path.stat().st_size <= 1.02 * weights


class Two(nn.Module):
    """One layer that our formats hold, and one with groups of 8, which none does."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 48, bias=False)
        self.b = nn.Linear(48, 40, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(nn.functional.silu(self.a(x)))
        return out


@pytest.mark.slow
def test_a_model_that_torchao_quantised_needs_nothing_else(tmp_path: pathlib.Path) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    from examples.models import Call
    from examples.running import Session

    torch.manual_seed(0)
    model = Two().to(torch.bfloat16).eval().requires_grad_(False)
    for name, group in (("a", 32), ("b", 8)):
        config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group))
        quantize_(model, config, lambda module, fqn, name=name: fqn == name)
    x = torch.randn(5, 64).to(torch.bfloat16)
    path = tmp_path / "model.pte"
    export_program({"forward": torch.export.export(model, (x,))}, "host", path)
    (delegate,) = inspect_program(path).methods[0].delegates
    assert [name.startswith("a.") and "packed" in name for name in delegate.constants].count(True) == 2
    (got,) = Session(path).run([Call("forward", (x,))])
    expected = model(x)
    assert float((got - expected).float().norm() / expected.float().norm()) < 2e-2
