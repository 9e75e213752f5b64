from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from etcuda.passes.repeats.find import Repeats, find_repeats
from tests.passes.repeats.repeated_models import MODELS, Cached, Layer, Stack, program_of


def structures(repeats: Repeats) -> str:
    """A letter for each region, the same one for the same structure."""
    letters: dict[object, str] = {}
    return "".join(letters.setdefault(region.structure, "abcdefghij"[len(letters)]) for region in repeats.regions)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers", "abbbbc"),
        ("dynamic", "abbbbc"),
        ("two kinds", "abbbc"),
        ("branches", "abbbc"),
        ("another in the middle", None),
        ("another at the end", "abbbc"),
        ("state", "abbbc"),
    ],
)
def test_layers_are_found(name: str, expected: str | None) -> None:
    program = MODELS[name]()
    repeats = find_repeats(program, 4)
    assert repeats is not None
    found = structures(repeats)
    assert expected is None or found == expected, found
    calls = [node for region in repeats.regions for node in region.nodes]
    assert len(calls) == len(set(calls))
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    assert all(order[a] < order[b] for a, b in itertools.pairwise(calls))


def test_a_layer_that_differs_in_a_number_is_a_region_of_its_own() -> None:
    repeats = find_repeats(MODELS["another in the middle"](), 4)
    assert repeats is not None
    found = structures(repeats)
    # Before it and behind it the layers are the same.
    (most,) = {letter for letter in found if found.count(letter) > 1}
    assert found.count(most) >= 6
    assert found.strip(most) != ""


def test_a_pattern_inside_of_a_pattern() -> None:
    repeats = find_repeats(MODELS["nested"](), 8)
    assert repeats is not None
    whole = sum(len(region.nodes) for region in repeats.regions)
    once = sum(len(region.nodes) for region in {region.structure: region for region in repeats.regions}.values())
    # Fifteen layers, of which at most two of each kind and what is cut off at the ends are compiled.
    assert once < whole * 0.45


@pytest.mark.parametrize(
    "layers",
    [
        [Layer(hidden=10 + index) for index in range(4)],
        [Layer(dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)],
        [Layer(scale=0.5 + index) for index in range(4)],
        [Layer()],
        [],
    ],
    ids=["shapes", "dtypes", "numbers", "one", "none"],
)
def test_layers_that_differ_do_not_repeat(layers: list[nn.Module]) -> None:
    assert find_repeats(program_of(Stack(*layers)), 8) is None


def test_a_repeat_that_saves_too_little_is_none() -> None:
    program = MODELS["layers"]()
    assert find_repeats(program, 4) is not None
    assert find_repeats(program, 1000) is None


class ReadsOld(nn.Module):
    """Reads the caches as they were before the call, behind the layers that write to them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cached() for _ in range(4))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        old = [layer.cache.clone() for layer in self.layers if isinstance(layer, Cached)]
        for layer in self.layers:
            x = layer(x, position)
        for each in old:
            x = x + each.sum(0)
        return x


def test_state_that_is_read_as_it_was_is_read_before_it_is_written() -> None:
    program = program_of(ReadsOld(), torch.ones(2, 8), torch.tensor([3, 1]))
    repeats = find_repeats(program, 4)
    if repeats is None:
        return
    nodes = {node.name: node for node in program.graph.nodes}
    placeholders = {nodes[name]: fqn for name, fqn in program.graph_signature.inputs_to_buffers.items()}
    written: set[object] = set()
    for region in repeats.regions:
        assert not written & set(region.inputs) & placeholders.keys()
        written |= {region.inputs[state] for state, _ in region.writes}


class Noisy(Layer):
    """Draws numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand_like(x)


def test_a_graph_that_draws_random_numbers_stays_whole(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert find_repeats(program_of(Stack(*(Noisy() for _ in range(4)))), 4) is None
    assert "random numbers" in caplog.text


def test_what_is_cut_is_not_what_would_be_one_kernel() -> None:
    repeats = find_repeats(MODELS["layers"](), 4)
    assert repeats is not None
    for region in repeats.regions[2:]:
        made = [node for node in region.inputs if node.op == "call_function"]
        # The residual, and a product that has not been added to it.
        assert len(made) == 2
        assert sum("mm" in str(node.target) or "linear" in str(node.target) for node in made) == 1
