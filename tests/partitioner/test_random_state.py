"""Random operators become functions of a buffer, or are refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import OutputKind

from etcuda import partition_report, random
from etcuda.errors import OptionError, StateError
from etcuda.options import BackendConfig, CompileOptions
from etcuda.partitioner.random_state import draw_from_state
from etcuda.partitioner.support import refuse
from tests.partitioner.programs import export

SEEDED = BackendConfig("host", CompileOptions(random_seed=5))
X = torch.ones(2, 3)


def targets(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def run(program: ExportedProgram, *inputs: Tensor) -> tuple[object, Tensor]:
    """What the program returns, and its generator's state behind it."""
    module = program.module(check_guards=False)
    return module(*inputs), module.get_buffer(random.STATE_NAME)


def test_draws_are_those_of_the_state() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.randn_like(x), x * torch.rand(x.shape[0], 2)[:, :1]

    program = export(function, X, dynamic=({0: Dim("n", max=9)},))
    before = str(program.graph)
    drawn = draw_from_state(program, SEEDED)
    assert str(program.graph) == before
    (first, second), state = run(drawn, torch.ones(4, 3))
    assert torch.equal(first, random.normal(random.make_state(5), [4, 3]))
    assert torch.equal(second, random.uniform(random.make_state(5), [4, 2], draw=1)[:, :1].expand(4, 3))
    assert state.tolist() == [5, 2]
    assert list(drawn.graph_signature.buffers_to_mutate.values()) == [random.STATE_NAME]


def test_a_module_with_weights_other_state_and_constants() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("noise", torch.zeros(2, 3))
            self.register_buffer("scratch", torch.zeros(3), persistent=False)
            self.constant = torch.tensor([1.0, 2.0, 3.0])

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.noise[:1].normal_()
                self.scratch.copy_(torch.rand(1))
            return self.linear(x) + self.noise + self.constant + self.scratch

    model = Model()
    drawn = draw_from_state(torch.export.export(model, (X,)), SEEDED)
    got, state = run(drawn, X)
    noise = torch.cat([random.normal(random.make_state(5), [1, 3]), torch.zeros(1, 3)])
    scratch = random.uniform(random.make_state(5), [1], draw=1)
    torch.testing.assert_close(got, model.linear(X) + noise + model.constant + scratch)
    assert state.tolist() == [5, 2]
    kinds = [spec.kind for spec in drawn.graph_signature.output_specs]
    assert kinds == [*[OutputKind.BUFFER_MUTATION] * 3, OutputKind.USER_OUTPUT]


def test_without_the_option_or_without_draws_nothing_changes() -> None:
    program = export(lambda x: x + torch.rand(3), X)
    assert draw_from_state(program, BackendConfig("host")) is program
    program = export(lambda x: x + 1, X)
    assert draw_from_state(program, SEEDED) is program


def test_a_method_that_sets_the_state_starts_with_the_seed() -> None:
    program = torch.export.export(random.Reseed(), (random.make_state(8),))
    drawn = draw_from_state(program, SEEDED)
    assert drawn.state_dict[random.STATE_NAME].tolist() == [5, 0]
    assert program.state_dict[random.STATE_NAME].tolist() == [0, 0]


def test_a_model_that_uses_the_state_itself_is_refused() -> None:
    class Model(random.Reseed):
        def forward(self, state: Tensor) -> Tensor:
            return super().forward(state) + torch.randint(9, (2,))

    program = torch.export.export(Model(), (random.make_state(8),))
    with pytest.raises(StateError, match=r"'etcuda_random_state' is the state that .*expected the model not to use it"):
        draw_from_state(program, SEEDED)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.poisson(x), "random_seed does not serve: expected one of bernoulli,"),
        (lambda x: torch.randint(0, 300, (2,), dtype=torch.uint8), "expected integers that uint8 holds, got 0 to 299"),
        (lambda x: torch.rand(3, dtype=torch.complex64).abs(), "complex64"),
        (lambda x: torch.empty_like(x).geometric_(1e-9) + torch.randint(-(2**62), 2**62, (2,))[0], "2\\*\\*62"),
        (lambda x: torch.rand(torch.nonzero(x).shape[0]) + 1, "depends on data"),
    ],
)
def test_what_is_not_served_has_a_reason(function: Callable[[Tensor], Tensor], words: str) -> None:
    drawn = draw_from_state(export(function, X), SEEDED)
    calls = [node for node in drawn.graph.nodes if node.op == "call_function"]
    reasons = [refusal.reason for node in calls if (refusal := refuse(node, SEEDED)) is not None]
    assert any(re.search(words, reason) for reason in reasons), reasons


def test_branches_draw_from_the_state() -> None:
    def inner(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 100, lambda x: x + torch.rand(3), lambda x: x * 2, (x,))

    def function(x: Tensor) -> Tensor:
        first = torch.rand(3)
        y = torch.cond(x.sum() > 0, inner, lambda x: x + torch.randint(9, (3,)) + torch.rand(3), (x,))
        return y + torch.rand(3) - first

    drawn = draw_from_state(export(function, X), SEEDED)
    for call, x in enumerate((X, -X, 100 * X)):
        start = random.make_state(5, 5 * call)
        u = [random.uniform(start, [3], draw=k) for k in range(5)]
        turns = x + random.randint(start, 0, 9, [3], draw=2) + u[3]
        expected = (x + u[1] if x.sum() > 100 else x * 2) if x.sum() > 0 else turns
        got, state = run(drawn, x)
        torch.testing.assert_close(got, expected + u[4] - u[0])
        assert state.tolist() == [5, 5 * (call + 1)]


def test_a_loop_that_draws_is_refused() -> None:
    def loop(x: Tensor) -> Tensor:
        step = lambda i, y: (i + 1, y + torch.rand(3))  # noqa: E731
        return torch.while_loop(lambda i, y: i < 3, step, (torch.tensor(0), x))[1]

    report = partition_report(export(loop, X), "host", SEEDED.options)
    assert any("inside of a loop" in each.reason for each in report.refusals), report


def test_the_refusal_without_the_option_names_it() -> None:
    report = partition_report(export(lambda x: x + torch.rand(3), X), "host")
    assert any("with the option random_seed" in each.reason for each in report.refusals)
    report = partition_report(export(lambda x: x + torch.rand(3), X), "host", {"random_seed": 0})
    assert report.refusals == ()


@pytest.mark.parametrize("seed", [-1, 2**63, True, 1.5, "1"])
def test_a_seed_is_an_integer(seed: object) -> None:
    with pytest.raises(OptionError, match=r"'random_seed': expected None or an integer from 0 to 2\*\*63 - 1"):
        CompileOptions.from_mapping({"random_seed": seed})
