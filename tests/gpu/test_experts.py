"""Mixtures of experts on the local GPU: every check of tests/kernels, and sizes of models."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
import torch

from etcuda.kernels.experts.configs import FewLaunch, HopperLaunch, Launch, ManyLaunch
from etcuda.options import CompileOptions
from tests.kernels.experts.experts_checks import RAGGED, Case, ExpertsChecks, check, expected, int4, ragged
from tests.kernels.experts.routing_checks import RoutingChecks
from tests.kernels.poison import Poisoned

_HOPPER = HopperLaunch(132, 0)
on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="the kernel is for sm_90"
)
_MANY = ManyLaunch(64, 64, 128, 4, 3, 128, 128, 4, 3, 0)


class TestOnGpu(ExpertsChecks):
    @pytest.mark.parametrize("quantised", [False, True])
    @pytest.mark.parametrize(
        ("tokens", "how"),
        [(1, FewLaunch(4, 2048, 4, 8, 4096, 4, 0)), (5, FewLaunch(4, 1024, 4, 4, 1024, 4, 0)), (130, _MANY)],
    )
    def test_sizes_of_models(self, tokens: int, how: Launch, quantised: bool) -> None:
        case = Case(
            tokens, 8, 60, 2048, 512, int4() if quantised else None, dtype=torch.bfloat16, how=how,
            activation_dtype="exact" if isinstance(how, ManyLaunch) else "int8",
        )  # fmt: skip
        check(case, case.arguments())

    @pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9, reason="kernels wait from sm_90 on"
    )
    @pytest.mark.parametrize("quantised", [False, True])
    @pytest.mark.parametrize("how", [FewLaunch(4, 1024, 4, 4, 1024, 4, 0), _MANY, _HOPPER])
    def test_kernels_that_wait_compute_the_same(
        self, how: Launch, quantised: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Layers one after the other in a graph, each reading what the one in front of it stores."""
        if isinstance(how, HopperLaunch) and torch.cuda.get_device_capability()[0] != 9:
            pytest.skip("the kernel in CUDA C++ is for sm_90")
        # Without the poison: kernels that fill would stand between, and all would wait for them.
        monkeypatch.undo()
        case = Case(3, 4, 9, 1024, 256, int4() if quantised else None, dtype=torch.bfloat16, how=how)
        given = case.arguments()

        def chain(pdl: int) -> list[torch.Tensor]:
            made, x = [], given["x"]
            launch = dataclasses.replace(how, pdl=pdl).to_args()
            for _ in range(6):
                x = torch.ops.etcuda.experts(**given | {"x": x, "how": launch})
                made.append(x)
            return made

        wanted = chain(0)
        assert all(each.isfinite().all() for each in wanted)
        chain(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = chain(1)
        for _ in range(20):
            for result in got:
                result.fill_(77)
            graph.replay()
            torch.cuda.synchronize()
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@on_hopper
class TestCudaCpp(Poisoned):
    """The kernel in CUDA C++: weights of int4 or bfloat16, bfloat16 activations."""

    # Each pair is compiled for itself, which takes several seconds.
    @pytest.mark.parametrize(
        ("activation", "offset"),
        [("silu", "zero_point"), ("silu", "symmetric"), ("gelu_erf", "minimum"), ("gelu_tanh", None)],
    )
    @pytest.mark.parametrize("counts", [RAGGED, [0, 0, 400], [2], [0, 2500]], ids=str)
    def test_formula(self, counts: list[int], activation: str, offset: str | None) -> None:
        case = Case(
            hidden=512, width=256, format=int4(offset=offset) if offset else None, activation=activation,
            dtype=torch.bfloat16, how=_HOPPER,
        )  # fmt: skip
        case, given = ragged(case, counts)
        got, wanted = torch.ops.etcuda.experts(**given), expected(case, given)
        assert float((got.double() - wanted).norm() / wanted.norm()) < 1e-2
        # However many CTAs there are, and however often it runs, it computes the same bits.
        for ctas in (132, 132, 5):
            assert torch.equal(torch.ops.etcuda.experts(**given | {"how": HopperLaunch(ctas, 0).to_args()}), got)
        # And a token has the bits that it has alone, whatever the height of its tiles is.
        alone = given | {name: given[name][-1:] for name in ("x", "indices", "routing")}
        assert torch.equal(torch.ops.etcuda.experts(**alone)[0], got[-1])

    @pytest.mark.parametrize("quantised", [True, False])
    @pytest.mark.parametrize("tokens", [33, 500])
    def test_sizes_of_models(self, tokens: int, quantised: bool) -> None:
        case = Case(tokens, 8, 60, 2048, 512, int4() if quantised else None, dtype=torch.bfloat16, how=_HOPPER)
        check(case, case.arguments())

    def test_no_tokens(self) -> None:
        case = Case(hidden=256, width=256, format=int4(), dtype=torch.bfloat16, how=_HOPPER)
        given = case.arguments()
        empty = {name: given[name][:0] for name in ("x", "indices", "routing")}
        assert torch.ops.etcuda.experts(**given | empty).shape == (0, 256)


class TestRoutingOnGpu(RoutingChecks):
    pass


@pytest.mark.parametrize(
    ("name", "tokens", "most"),
    [
        ("int4", 1, None),
        ("int4", 40, 64),
        ("fp16", 40, 64),
        ("biased", 1, None),
        ("biased", 40, 64),
        pytest.param("cuda", 40, 64, marks=on_hopper),
    ],
)
def test_a_program_computes_what_the_model_does(
    name: str, tokens: int, most: int | None, tmp_path: pathlib.Path, run_session: pathlib.Path
) -> None:
    """Compiled without a GPU and run without PyTorch, twice, for the second call may be another one's memory."""
    from executorch.exir import to_edge_transform_and_lower

    from etcuda import CudaPartitioner, save_program
    from examples.cpp.session import run_calls
    from examples.models import Call, relative_error
    from examples.running import gpu_arch
    from tests.passes.experts.test_route import CASES, program

    arch = gpu_arch()
    assert arch is not None
    case = Case(hidden=256, width=256, format=int4(), dtype=torch.bfloat16) if name == "cuda" else CASES[name]
    model, exported, inputs = program(case, tokens, most)
    options = CompileOptions(hopper_experts=name == "cuda")
    lowered = to_edge_transform_and_lower(exported, partitioner=[CudaPartitioner(arch, options)])
    save_program(lowered.to_executorch(), tmp_path / "m.pte")
    wanted = model(*inputs)
    for got in run_calls(run_session, tmp_path / "m.pte", [Call("forward", inputs)] * 3, like=[wanted] * 3):
        assert relative_error([got.float()], [wanted.float()]) < 3e-2
