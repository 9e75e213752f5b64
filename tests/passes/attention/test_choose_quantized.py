"""Attention over coded caches gets the configuration of the export's GPU, by its number of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim

from etcuda.kernels.quantized_cache.configs import MAX_SPLIT_ROWS, QuantizedConfig, choose
from etcuda.kernels.quantized_cache.problem import attention_problem
from etcuda.options import BackendConfig
from etcuda.passes.attention.choose_quantized import choose_quantized_attention
from etcuda.passes.graph.calls import arguments
from tests.passes.attention.attention_routing import H200

OP = torch.ops.etcuda.quantized_attention.default


class Attends(torch.nn.Module):
    def forward(self, q: Any, codes: Any, scale: Any, positions: Any) -> Any:
        return torch.ops.etcuda.quantized_attention(
            q, codes, scale, codes, scale, None, None, positions, None, "tq4", 0.125
        )


def chosen(rows: int, dynamic: Any = None) -> tuple[QuantizedConfig, dict[str, Any]]:
    """The configuration in the graph, and the call's other arguments."""
    q = torch.zeros(1, 4, rows, 64, dtype=torch.bfloat16)
    codes, scale = torch.zeros(1, 2, 4096, 32, dtype=torch.uint8), torch.zeros(1, 2, 4096, dtype=torch.bfloat16)
    shapes = None if dynamic is None else ({2: dynamic}, None, None, {0: dynamic})
    program = torch.export.export(Attends(), (q, codes, scale, torch.arange(rows)), dynamic_shapes=shapes)
    assert choose_quantized_attention.run(program, BackendConfig(target=H200)) == 1
    (call,) = (node for node in program.graph.nodes if node.target is OP)
    given = arguments(call)
    names = list(vars(QuantizedConfig(1, 1, 1, 1, 1)))
    config = QuantizedConfig(*(given.pop(name) for name in names))
    return config, given


def test_a_row_has_its_keys_split() -> None:
    config, given = chosen(1)
    values = {name: each.meta["val"] if hasattr(each, "meta") else each for name, each in given.items()}
    names = ("q", "k", "mask", "positions", "format", "scale", "window")
    assert config == choose(attention_problem(*(values[name] for name in names)), H200)
    assert config.num_splits > 1
    assert config.section == 0
    assert (given["format"], given["scale"]) == ("tq4", 0.125)


def test_rows_of_any_number_have_the_cache_decoded() -> None:
    config, _ = chosen(64, Dim("rows", min=2, max=512))
    assert config.num_splits == 1
    assert config.section > 0


def test_a_few_rows_of_any_number_have_their_keys_split() -> None:
    config, _ = chosen(4, Dim("rows", min=2, max=MAX_SPLIT_ROWS))
    assert config.num_splits > 1
    assert config.section == 0


def test_nothing_is_chosen_for_the_host() -> None:
    program = torch.export.export(
        Attends(),
        (
            torch.zeros(1, 4, 1, 64),
            torch.zeros(1, 2, 8, 32, dtype=torch.uint8),
            torch.zeros(1, 2, 8, dtype=torch.bfloat16),
            torch.arange(1),
        ),
    )
    assert choose_quantized_attention.run(program, BackendConfig(target="host")) == 0
