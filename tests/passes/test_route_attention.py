"""Attention is routed by shapes, masks and the table, and the routed program computes the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from etcuda.backend import preprocess
from etcuda.backend.options import BackendConfig, CompileOptions
from etcuda.backend.target import PORTABLE, TARGETS
from etcuda.errors import PassError
from etcuda.kernels.attention import attention_reference, table
from etcuda.kernels.attention.configs import SplitConfig, TiledConfig
from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS, UPPER_LEFT, AttentionProblem
from etcuda.kernels.attention.select import choose, choose_split, split_limit
from etcuda.kernels.attention.split import MAX_QUERY
from etcuda.partitioner.partitioner import CudaPartitioner
from etcuda.passes import route_attention as route
from etcuda.passes.manager import run_passes
from etcuda.passes.recognize_mask import PositionMask
from tests.partitioner.programs import Calls, export

aten = torch.ops.aten
SDPA = torch.nn.functional.scaled_dot_product_attention
SPLIT, TILED = torch.ops.etcuda.attention_split.default, torch.ops.etcuda.attention_tiled.default
H200 = TARGETS["sm_90"]
CHECKED = BackendConfig(H200, CompileOptions(check_attention=True))
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests say what was measured; the tables in the repository change."""
    monkeypatch.setattr(table, "load", lambda arch: None)


class _CapturedError(Exception):
    """Ends an export where the backend is called; the argument is what it was given."""


def _capture(jobs: list[tuple[str, ExportedProgram, Any]]) -> Any:
    raise _CapturedError(jobs)


def routed(program: ExportedProgram, config: BackendConfig = CHECKED) -> ExportedProgram:
    """The program as the backend gets it, after the passes."""
    with mock.patch.object(preprocess, "_preprocess_all", _capture), pytest.raises(_CapturedError) as caught:
        to_edge_transform_and_lower(
            program, partitioner=[CudaPartitioner(target=H200, options={"attention_kernels": True})]
        )
    ((_, edge, _),) = caught.value.args[0]
    edge = preprocess.copy_graph(edge)
    assert any("scaled_dot_product" in str(node.target) for m in modules(edge) for node in m.graph.nodes)
    run_passes(edge, config)
    assert not any("scaled_dot_product" in str(node.target) for m in modules(edge) for node in m.graph.nodes)
    return edge


def modules(program: ExportedProgram) -> list[GraphModule]:
    return [module for module in program.graph_module.modules() if isinstance(module, GraphModule)]


def calls(program: ExportedProgram) -> list[Node]:
    return [n for module in modules(program) for n in module.graph.nodes if n.target in (SPLIT, TILED)]


def only_call(program: ExportedProgram) -> Node:
    (node,) = calls(program)
    return node


def masking(node: Node) -> tuple[bool, bool, bool, int, int]:
    """Whether mask, kv_len and positions are given; causal; window."""
    mask, kv_len, positions, _, causal, window = node.args[3:9]
    return mask is not None, kv_len is not None, positions is not None, causal, window  # type: ignore[return-value]


def _reference(*arguments: Any) -> torch.Tensor:
    return attention_reference(*arguments[:10])


def run(program: ExportedProgram, *inputs: Any) -> Any:
    """Runs the program with the reference in the place of the kernels."""
    module = program.module(check_guards=False)
    for inner in module.modules():
        if isinstance(inner, GraphModule):
            for node in inner.graph.nodes:
                if node.target in (SPLIT, TILED):
                    node.target = _reference
            inner.recompile()
    # A delegate may take the inputs in another order.
    names = program.graph_signature.user_inputs
    result = module(*(inputs[int(re.sub(r"\D", "", str(name)))] for name in names))
    return result[0] if isinstance(result, tuple) else result


def tensors(l_q: int = 5, l_kv: int = 40, batch: int = 1, dtype: torch.dtype = BF16) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((batch, 4, l_q, 16), (batch, 2, l_kv, 16), (batch, 2, l_kv, 16))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def attend(q: Any, k: Any, v: Any, mask: Any = None, **keywords: Any) -> Any:
    return SDPA(q, k, v, attn_mask=mask, enable_gqa=True, **keywords)


def n_of(k: torch.Tensor) -> torch.Tensor:
    return torch.arange(k.shape[2])


def m_of(q: torch.Tensor) -> torch.Tensor:
    return torch.arange(q.shape[2])[:, None]


def as_float(mask: torch.Tensor, low: float) -> torch.Tensor:
    return torch.where(mask, 0.0, low).to(BF16)


LOWEST = torch.finfo(BF16).min
POS = torch.tensor([3, 0, 39, 7, 8])

# Name: function of (q, k, v, more inputs), more inputs, (mask, kv_len, positions, causal, window) of the kernel call.
MASKS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[bool, bool, bool, int, int]]] = {
    "none": (lambda q, k, v: attend(q, k, v), (), (False, False, False, FULL, 0)),
    "is_causal": (lambda q, k, v: attend(q, k, v, is_causal=True), (), (False, False, False, UPPER_LEFT, 0)),
    "upper left": (lambda q, k, v: attend(q, k, v, n_of(k) <= m_of(q)), (), (False, False, False, UPPER_LEFT, 0)),
    "turned around": (lambda q, k, v: attend(q, k, v, m_of(q) >= n_of(k)), (), (False, False, False, UPPER_LEFT, 0)),
    "strictly below": (
        lambda q, k, v: attend(q, k, v, n_of(k) < m_of(q) + 1),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    "not above": (lambda q, k, v: attend(q, k, v, ~(n_of(k) > m_of(q))), (), (False, False, False, UPPER_LEFT, 0)),
    "tril": (
        lambda q, k, v: attend(q, k, v, torch.ones(5, 40, dtype=torch.bool).tril()),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    "lower right": (
        lambda q, k, v: attend(q, k, v, n_of(k) <= m_of(q) + (k.shape[2] - q.shape[2])),
        (),
        (False, False, False, LOWER_RIGHT, 0),
    ),
    "window": (
        lambda q, k, v: attend(q, k, v, (n_of(k) <= m_of(q)) & (n_of(k) > m_of(q) - 3)),
        (),
        (False, False, False, UPPER_LEFT, 3),
    ),
    "window by distance": (
        lambda q, k, v: attend(q, k, v, torch.logical_and(m_of(q) - n_of(k) >= 0, m_of(q) - n_of(k) < 3)),
        (),
        (False, False, False, UPPER_LEFT, 3),
    ),
    "four dimensions": (
        lambda q, k, v: attend(q, k, v, (n_of(k) <= m_of(q))[None, None].expand(1, 1, -1, -1)),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    "positions": (
        lambda q, k, v, p: attend(q, k, v, n_of(k) <= p[:, None]),
        (POS,),
        (False, False, True, POSITIONS, 0),
    ),
    "positions and a window": (
        lambda q, k, v, p: attend(q, k, v, (n_of(k) <= p[:, None]) & (n_of(k) > p[:, None] - 4)),
        (POS,),
        (False, False, True, POSITIONS, 4),
    ),
    "positions with an offset": (
        lambda q, k, v, p: attend(q, k, v, n_of(k) < p[:, None] - 2),
        (POS + 4,),
        (False, False, True, POSITIONS, 0),
    ),
    "positions per batch": (
        lambda q, k, v, p: attend(q, k, v, (n_of(k) <= p[:, :, None])[:, None]),
        (POS[None],),
        (False, False, True, POSITIONS, 0),
    ),
    "lengths": (
        lambda q, k, v, s: attend(q, k, v, (n_of(k)[None] < s[:, None])[:, None, None]),
        (torch.tensor([9]),),
        (False, True, False, FULL, 0),
    ),
    "lengths and upper left": (
        lambda q, k, v, s: attend(q, k, v, (n_of(k) < s[0]) & (n_of(k) <= m_of(q))),
        (torch.tensor([3]),),
        (False, True, False, UPPER_LEFT, 0),
    ),
    "zeros and minus infinities": (
        lambda q, k, v: attend(q, k, v, as_float(n_of(k) <= m_of(q), -torch.inf)),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    "zeros and lowest numbers": (
        lambda q, k, v: attend(q, k, v, as_float(n_of(k) <= m_of(q), LOWEST)),
        (),
        (False, False, False, UPPER_LEFT, 0),
    ),
    # What must stay a tensor.
    "lowest numbers where a row may see no key": (
        lambda q, k, v, p: attend(q, k, v, as_float(n_of(k) <= p[:, None], LOWEST)),
        (POS,),
        (True, False, False, FULL, 0),
    ),
    "an input": (
        lambda q, k, v, mask: attend(q, k, v, mask),
        (torch.rand(5, 40) > 0.5,),
        (True, False, False, FULL, 0),
    ),
    "an input and upper left": (
        lambda q, k, v, mask: attend(q, k, v, mask & (n_of(k) <= m_of(q))),
        (torch.rand(5, 40) > 0.2,),
        (True, False, False, FULL, 0),
    ),
    "every other key": (
        lambda q, k, v: attend(q, k, v, 2 * n_of(k) <= m_of(q)),
        (),
        (True, False, False, FULL, 0),
    ),
    "a chessboard": (lambda q, k, v: attend(q, k, v, n_of(k) != m_of(q)), (), (True, False, False, FULL, 0)),
    "near on both sides": (
        lambda q, k, v: attend(q, k, v, (n_of(k) < m_of(q) + 3) | (n_of(k) > m_of(q) - 3)),
        (),
        (True, False, False, FULL, 0),
    ),
    "a window whose width is data": (
        lambda q, k, v, w: attend(q, k, v, (n_of(k) <= m_of(q)) & (n_of(k) > m_of(q) - w)),
        (torch.tensor(2),),
        (True, False, False, FULL, 0),
    ),
    "a bias": (lambda q, k, v, b: attend(q, k, v, b), (torch.randn(4, 5, 40).to(BF16),), (True, False, False, FULL, 0)),
    "numbers that are no infinities": (
        lambda q, k, v: attend(q, k, v, as_float(n_of(k) <= m_of(q), -5.0)),
        (),
        (True, False, False, FULL, 0),
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    function, more, expected = MASKS[name]
    inputs = (*tensors(), *more)
    program = routed(export(function, *inputs))
    node = only_call(program)
    assert node.target is SPLIT
    assert masking(node) == expected
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1)])
def test_the_position_of_a_single_row(shape: tuple[int, ...]) -> None:
    def function(q: Any, k: Any, v: Any, p: Any) -> Any:
        limit = p.reshape(-1, 1, 1, 1) if p.dim() else p
        return attend(q, k, v, n_of(k)[None, None, None] <= limit)

    inputs = (*tensors(l_q=1, batch=3), torch.randint(0, 40, shape))
    program = routed(export(function, *inputs))
    assert masking(only_call(program)) == (False, False, True, POSITIONS, 0)
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


def test_heads_that_were_repeated() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        k, v = (x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(1, 4, -1, 16) for x in (k, v))
        return SDPA(q, k, v)

    inputs = tensors()
    program = routed(export(function, *inputs))
    keys: Any = only_call(program).args[1]
    assert keys.meta["val"].shape == (1, 2, 40, 16)
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


def test_heads_that_were_repeated_in_another_order() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        k, v = (x[:, None].expand(-1, 2, -1, -1, -1).reshape(1, 4, -1, 16) for x in (k, v))
        return SDPA(q, k, v)

    inputs = tensors()
    program = routed(export(function, *inputs))
    keys: Any = only_call(program).args[1]
    assert keys.meta["val"].shape == (1, 4, 40, 16)
    torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


def self_attention(q: Any, k: Any, v: Any) -> Any:
    return attend(q, k, v, n_of(k) <= m_of(q)).transpose(1, 2).reshape(1, -1, 64) * 2


LENGTH = Dim("length", min=2, max=100)
DYNAMIC = ({2: LENGTH}, {2: LENGTH}, {2: LENGTH})


def test_a_dynamic_number_of_rows_is_decided_on_the_host() -> None:
    program = routed(export(self_attention, *tensors(24, 24), dynamic=DYNAMIC))
    conds = [node for node in program.graph.nodes if node.target is torch.ops.higher_order.cond]
    assert len(conds) == 1
    predicate: Any = conds[0].args[0]
    assert isinstance(predicate.meta["val"], torch.SymBool)
    assert predicate.args[1] == MAX_QUERY
    assert [node.target for node in calls(program)] == [SPLIT, TILED]
    for length in (2, 16, 17, 60):
        inputs = tensors(length, length)
        torch.testing.assert_close(run(program, *inputs), self_attention(*inputs), atol=4e-2, rtol=2e-2)


def test_a_number_of_rows_that_one_kernel_serves() -> None:
    few = Dim("few", min=2, max=MAX_QUERY)
    program = routed(export(self_attention, *tensors(9, 9), dynamic=({2: few}, {2: few}, {2: few})))
    assert only_call(program).target is SPLIT
    many = Dim("many", min=MAX_QUERY + 1, max=99)
    program = routed(export(self_attention, *tensors(20, 20), dynamic=({2: many}, {2: many}, {2: many})))
    assert only_call(program).target is TILED


@pytest.mark.parametrize("config", [CHECKED, BackendConfig("host")])
def test_what_no_kernel_serves_becomes_its_formula(config: BackendConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    dtype = BF16 if config.is_host else torch.float32
    inputs = tensors(24, 24, dtype=dtype)
    program = routed(export(self_attention, *inputs, dynamic=DYNAMIC), config)
    assert calls(program) == []
    assert config.is_host == ("the kernels take bfloat16 and float16, got float32" not in caplog.text)
    tolerance = 4e-2 if config.is_host else 1e-5
    for length in (2, 24, 60):
        inputs = tensors(length, length, dtype=dtype)
        expected = self_attention(*inputs)
        torch.testing.assert_close(run(program, *inputs), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scale": -0.5}, r"scale is positive and finite, got -0\.5"),
        ({"v": torch.randn(1, 2, 40, 8).to(BF16)}, "values are as wide as keys, got 8 and 16"),
        ({"q": torch.randn(1, 4, 5, 520).to(BF16), "k": torch.randn(1, 2, 40, 520).to(BF16)}, "values are as wide"),
    ],
)
def test_reasons(change: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "etcuda")
    q, k, v = tensors()
    inputs = (change.get("q", q), change.get("k", k), change.get("v", v))
    keywords = {"scale": change["scale"]} if "scale" in change else {}
    program = routed(export(lambda q, k, v: attend(q, k, v, **keywords), *inputs))
    assert calls(program) == []
    assert "is computed by its formula" in caplog.text
    assert re.search(reason, caplog.text)
    torch.testing.assert_close(run(program, *inputs), attend(*inputs, **keywords), atol=2e-2, rtol=2e-2)


def test_the_debug_option_finds_a_wrong_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "recognize_mask", lambda mask, q, k: PositionMask(UPPER_LEFT, window=2))
    program = export(self_attention, *tensors(24, 24))
    with pytest.raises(
        PassError, match=r"check_attention: expected the rewritten call to be equal, got a relative err"
    ):
        routed(program)
    assert len(calls(routed(program, BackendConfig(H200)))) == 1


def test_attention_in_a_branch() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        return torch.cond(q.sum() > 0, lambda q, k, v: SDPA(q, k, v), lambda q, k, v: q + 1, (q, k, v))

    q, k, v = (torch.randn(1, 2, 40, 16).to(BF16) for _ in range(3))
    program = routed(export(function, q, k, v))
    assert only_call(program).target is TILED
    for sign in (1, -1):
        inputs = (q.abs() * sign, k, v)
        torch.testing.assert_close(run(program, *inputs), function(*inputs), atol=2e-2, rtol=2e-2)


def test_every_target_gets_a_configuration() -> None:
    for target in (*TARGETS.values(), PORTABLE):
        for problem in (AttentionProblem(1, 32, 4, 512, 1, 4096), AttentionProblem(2, 8, 8, 512, 900, 900)):
            config = choose(problem, target).config
            used = (config.block_n + config.block_m) * problem.block_d * 2
            assert used <= target.shared_memory_per_block, (target.arch, config)


# The table

SMALL = SplitConfig(16, 32, 4, 2, 5, 5, 16)
LARGE = SplitConfig(16, 128, 4, 3, 20, 20, 64)
TILE = TiledConfig(64, 64, 4, 3)
WIDE = TiledConfig(128, 32, 8, 2)


def entry(kernel: table.KernelName, config: table.Config, us: float, **shape: Any) -> table.Entry:
    problem = AttentionProblem(**({"batch": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64} | shape))
    return table.Entry(kernel, problem, ((config, us), (dataclasses.replace(config, num_warps=1), us + 1)))


def measured(*entries: table.Entry) -> table.Table:
    return table.Table("sm_90", {"gpu": "made up", "num_sms": 132}, entries)


def use(monkeypatch: pytest.MonkeyPatch, *entries: table.Entry) -> None:
    monkeypatch.setattr(table, "load", lambda arch: measured(*entries))


def test_each_bucket_picks_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        entry("split", SMALL, 5, l_q=1, l_kv=1024),
        entry("split", LARGE, 9, l_q=1, l_kv=65536),
        entry("tiled", TILE, 50, l_q=512, l_kv=512, causal=UPPER_LEFT),
        entry("tiled", WIDE, 500, l_q=8192, l_kv=8192, causal=UPPER_LEFT),
    ]
    use(monkeypatch, *entries)
    for each in entries:
        assert choose(each.problem, H200).config == each.best
    near = AttentionProblem(1, 4, 2, 64, 1, 1500)
    assert choose(near, H200).config == dataclasses.replace(SMALL, block_s=8)
    assert "measured on made up, nearest shape batch 1 heads 4/2" in choose(near, H200).source
    assert choose(dataclasses.replace(near, l_kv=40000), H200).config.block_n == LARGE.block_n
    assert choose(AttentionProblem(1, 4, 2, 64, 700, 700, causal=UPPER_LEFT), H200).config == TILE
    assert choose(AttentionProblem(1, 4, 2, 64, 5000, 5000, causal=UPPER_LEFT), H200).config == WIDE
    # Other heads: as many blocks in all. Fewer keys: no part without keys.
    assert choose_split(AttentionProblem(5, 4, 2, 64, 1, 1024), H200).config.num_splits == 1  # type: ignore[union-attr]
    assert choose_split(AttentionProblem(1, 2, 1, 64, 1, 1024), H200).config.num_splits == 10  # type: ignore[union-attr]
    assert choose_split(AttentionProblem(1, 4, 2, 64, 1, 64), H200).config.num_splits == 2  # type: ignore[union-attr]
    smaller = dataclasses.replace(H200, num_sms=66)
    assert choose_split(near, smaller).config.num_splits == 2  # type: ignore[union-attr]


def test_changing_the_table_changes_the_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(1, 1024)
    picks = []
    for config in (SMALL, dataclasses.replace(SMALL, block_n=128, num_splits=3)):
        use(monkeypatch, entry("split", config, 5, l_q=1, l_kv=1024, head_dim=16))
        picks.append(only_call(routed(export(attend, *inputs))).args[10:])
        assert picks[-1] == dataclasses.astuple(config)
    assert picks[0] != picks[1]


def pair(l_q: int, split_us: float, tiled_us: float) -> list[table.Entry]:
    shape = {"l_q": l_q, "l_kv": 1024, "causal": LOWER_RIGHT, "head_dim": 16}
    return [entry("split", SMALL, split_us, **shape), entry("tiled", TILE, tiled_us, **shape)]


@pytest.mark.parametrize(("at_4", "at_16", "limit"), [(9, 9, 16), (9, 2, 15), (2, 9, 3), (2, 2, 3)])
def test_the_crossover_is_the_tables(monkeypatch: pytest.MonkeyPatch, at_4: float, at_16: float, limit: int) -> None:
    use(monkeypatch, *pair(4, 5, at_4), *pair(16, 5, at_16))
    problem = AttentionProblem(1, 4, 2, 16, 9, 1024, causal=LOWER_RIGHT)
    assert split_limit(problem, H200) in (limit, limit - 5)  # 16 is nearest from 9 rows on
    program = routed(export(self_attention, *tensors(24, 24), dynamic=DYNAMIC))
    (cond,) = [node for node in program.graph.nodes if node.target is torch.ops.higher_order.cond]
    predicate: Any = cond.args[0]
    assert predicate.args[1] == split_limit(AttentionProblem(1, 4, 2, 16, 24, 24, causal=UPPER_LEFT), H200)


def test_no_threshold_stands_in_the_pass() -> None:
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(route))
    numbers = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is int}
    # Ranks, axes and the number of a result.
    assert numbers <= {0, 1, 2, 3, 4, 5}


# Models


def transformers_model(name: str) -> torch.nn.Module:
    import transformers

    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]} if name == "Gemma3" else {}
    config = getattr(transformers, config_name)(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=128,
        attn_implementation="sdpa",
        use_cache=False,
        **layers,
    )
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    return model.to(BF16).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "windows"), [("Llama", [0, 0]), ("Qwen3", [0, 0]), ("Gemma3", [16, 0])])
def test_models_of_transformers(name: str, windows: list[int]) -> None:
    model = transformers_model(name)
    module = Calls(lambda ids: model(input_ids=ids)["logits"])
    module.model = model  # registers the weights
    length = Dim("length", min=2, max=128)
    with torch.no_grad():
        program = torch.export.export(module, (torch.arange(40)[None],), dynamic_shapes=(({1: length},),))
    program = routed(program)
    found = calls(program)
    assert [node.target for node in found] == [SPLIT, TILED] * 2
    assert [masking(node) for node in found[::2]] == [(False, False, False, UPPER_LEFT, window) for window in windows]
    for node in found:
        keys: Any = node.args[1]
        assert keys.meta["val"].shape[1] == 2
    for size in (2, 16, 17, 100):
        ids = torch.randint(0, 64, (1, size))
        with torch.no_grad():
            expected = model(input_ids=ids)["logits"].double()
            got = run(program, ids).double()
        assert float((got - expected).norm() / expected.norm()) < 3e-2


def test_the_demo_decoder() -> None:
    from examples.models import CASES

    case = CASES["decoder-bf16"]
    programs = case.export(case.model())
    prefill = routed(programs["prefill"])
    assert {node.target for node in calls(prefill)} == {SPLIT, TILED}
    decode = routed(programs["decode"])
    assert {node.target for node in calls(decode)} == {SPLIT}
    for node in (*calls(prefill), *calls(decode)):
        assert masking(node) == (False, False, True, POSITIONS, 0)
