"""Configurations of one split sum a row in one order, whatever the weight's number of rows: what the compiler makes of
them for sm_90, compiled here."""

from __future__ import annotations

import collections
import dataclasses
import re

import pytest

from etcuda.kernels.common.device import LocalDevice
from etcuda.kernels.linear.choose.configs import MatvecConfig, matvec_candidates, padded
from etcuda.kernels.linear.problem import LinearProblem
from tests.exhaustive import diagonal, only
from tests.kernels.linear.linear_cases import Case
from tests.kernels.offline import Rows, compile_matvec

DEVICE = LocalDevice("sm_90", 132, 227 << 10)
ROWS = (Rows(sixteen=True), Rows(), Rows(one=True))
# An instruction that decides about the bits of a sum, or brings parts of it together.
_ARITHMETIC = re.compile(r"^\s*(?:@\S+ )?((?:fma|mul|add|sub|div)\.\S*f32|(?:shfl|bar|dp4a)\.\S+)\s", re.MULTILINE)
_SUM = re.compile(r'"tt\.reduce"\(%\S+\) <\{axis = (\d) .*?\}\) : \((tensor<[^)]*>)\)', re.DOTALL)


def kernels(k: int, m: int) -> list[MatvecConfig]:
    """The candidates, each compiled kernel once."""
    found = matvec_candidates(LinearProblem(m, 4096, k), DEVICE)
    return list(dict.fromkeys(dataclasses.replace(config, ctas_per_sm=0) for config in found))


def splits(ttgir: str) -> list[tuple[str, ...]]:
    """For each sum of fp32: shape along K, and how a thread, the lanes of a warp and the warps share it."""
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.blocked<\{(.*)\}>$", ttgir, re.MULTILINE))
    found = []
    for axis, operand in _SUM.findall(ttgir):
        shape, layout = re.fullmatch(r"tensor<([\dx]+)xf32, (#\w+)>", operand).groups()  # type: ignore[union-attr]
        along = [shape.split("x")[int(axis)]]
        for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA", "order"):
            (sizes,) = re.findall(rf"{name} = \[([\d, ]+)\]", layouts[layout])
            along.append(sizes if name == "order" else sizes.split(", ")[int(axis)])
        found.append(tuple(along))
    return found


@pytest.mark.parametrize(("k", "m"), diagonal([96, 4096, 5376], [1, 4, 8]))
def test_the_split_of_a_row_does_not_depend_on_the_number_of_rows(k: int, m: int) -> None:
    case = Case(k=k, bias=False)
    of_split: dict[MatvecConfig, list[tuple[str, ...]]] = {}
    for config in kernels(k, m):
        first, *others = (splits(compile_matvec(config, case, m, rows, 1, "ttgir")) for rows in ROWS)
        assert first == others[0] == others[1], config
        assert of_split.setdefault(config.split, first) == first, config
        ((size, per_thread, lanes, warps, _),) = first
        assert int(size) == config.blocks
        # Neighbouring blocks in neighbouring lanes, then in neighbouring warps: each load of a warp is contiguous.
        assert int(per_thread) == 1
        assert int(lanes) == min(32, config.blocks)
        assert int(warps) == min(config.num_warps, padded(config.blocks // 32))


FORMATS = [
    Case(k=5376),
    Case(k=5376, bias=False, offset="minimum", storage="codes"),
    Case("int8", k=5376, bias=False, offset="symmetric", storage="codes", group_size=16),
]
# What they have is in those above.
MORE = [
    Case(k=5376, bias=False, offset="symmetric", group_size=128),
    Case(k=5376, bias=False, offset="minimum"),
    Case("int8", k=5376, bias=False, offset="symmetric"),
]


@pytest.mark.parametrize(
    "case",
    [*FORMATS, *(only(False, each) for each in MORE)],
    ids=lambda c: f"{c.bits}-{c.storage}-{c.offset}-{c.group_size}",
)
def test_the_arithmetic_is_the_same_instruction_for_instruction(case: Case) -> None:
    chosen = [each for each in kernels(case.k, 1) if each.resident][:2] + kernels(case.k, 8)[:1]
    assert {each.resident for each in chosen} == {0, 1}
    for config in chosen:
        tokens = 1 if config.resident else 8
        first, *others = (_ARITHMETIC.findall(compile_matvec(config, case, tokens, each, 1, "ptx")) for each in ROWS)
        assert {"shfl", "bar" if config.num_warps > 1 else "shfl"} <= {each.split(".")[0] for each in first}
        assert any(each.startswith("fma.") for each in first)
        assert first == others[0], config
        # One row alone: the compiler knows more and moves instructions about.
        assert sorted(first) == sorted(others[1]), config


@pytest.mark.parametrize("config", [(0, 1, 2, 128, 4, 1, 0), (0, 0, 2, 64, 2, 1, 0), (1, 0, 2, 32, 1, 1, 0)], ids=str)
def test_rows_of_a_tile_are_computed_alike(config: tuple[int, ...]) -> None:
    """Of each instruction there are as many more from four rows to eight as twice those from two to four."""
    case = Case(k=4096, bias=False)
    counts = []
    for block_n in (2, 4, 8):
        shaped = dataclasses.replace(MatvecConfig(*config), block_n=block_n)
        code = compile_matvec(shaped, case, 1, Rows(sixteen=True), 1, "ptx")
        found = collections.Counter(_ARITHMETIC.findall(code))
        # Lanes that hold no row of their own exchange more: how many depends on rows and warps together.
        counts.append(
            collections.Counter({name: n for name, n in found.items() if not name.startswith(("shfl", "bar"))})
        )
    first, second, third = counts
    assert first != second
    assert {name: third[name] - second[name] for name in third} == {
        name: 2 * (second[name] - first[name]) for name in third
    }


def test_rows_of_a_tile_and_ctas_are_all_that_a_split_leaves_open() -> None:
    config = MatvecConfig(0, 1, 4, 128, 4, 1, 8)
    for other in ((0, 1, 4, 128, 4, 1, 4), (0, 1, 2, 128, 4, 1, 8)):
        assert MatvecConfig(*other).split == config.split
    for other in ((1, 1, 4, 128, 4, 1, 8), (0, 1, 4, 128, 2, 1, 8), (0, 0, 4, 128, 4, 1, 0)):
        assert MatvecConfig(*other).split != config.split
    # The two differ in what they make of a sum: one spreads a row over fewer warps.
    case = Case(k=4096, bias=False)
    spread = [splits(compile_matvec(MatvecConfig(0, 1, 4, 128, w, 1, 0), case, 1, Rows(), 1, "ttgir")) for w in (2, 4)]
    assert spread[0] != spread[1]


@pytest.mark.parametrize("quantized", [0, 1])
def test_the_first_weights_are_loaded_before_the_wait(quantized: int) -> None:
    code = compile_matvec(MatvecConfig(quantized, 0, 4, 64, 2, 1, 0), Case(k=4096, bias=False), 1, Rows(), 1, "ptx")
    before, _, behind = code.partition("griddepcontrol.wait")
    loads = "ld.global.L1::evict_first"
    # Of K there are two steps, and a loop of one: as many loads of weights before as behind.
    assert 0 < before.count(loads) == behind.count(loads)
