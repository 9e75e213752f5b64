"""The kernels against the reference: test_attention.py runs this file in Triton's interpreter, tests/gpu on a GPU."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcuda.kernels.attention import launch, op
from etcuda.kernels.attention.problem import FULL, LOWER_RIGHT, POSITIONS, UPPER_LEFT
from tests.exhaustive import alternate
from tests.kernels.attention.attention_cases import DEVICE, DTYPES, PDL, Case, check, make
from tests.kernels.poison import Poisoned

ON_GPU = DEVICE == "cuda"


def at(*rows: tuple[int, int]) -> dict[str, Any]:
    """Consecutive positions: for each batch row the first, and how many."""
    return {"causal": POSITIONS, "positions": tuple(tuple(range(first, first + count)) for first, count in rows)}


CASES = {
    "decode": Case(l_q=1, l_kv=100),
    "one key": Case(l_q=1, l_kv=1),
    "as many queries as the split kernel takes": Case(l_q=16, l_kv=50, causal=LOWER_RIGHT),
    "more": Case(l_q=37, l_kv=37, causal=UPPER_LEFT),
    "more queries than keys": Case(l_q=21, l_kv=9, causal=LOWER_RIGHT),
    "one KV head": Case(heads=6, kv_heads=1),
    "a group that is no power of two": Case(heads=15, kv_heads=3, l_q=2),
    "rows in several tiles": Case(heads=14, kv_heads=2, l_q=5, causal=LOWER_RIGHT),
    "no groups": Case(heads=3, kv_heads=3, batch=3),
    "head_dim 24": Case(head_dim=24),
    "head_dim 5": Case(head_dim=5),
    "head_dim 80": Case(head_dim=80, l_kv=33),
    "heads last": Case(layout="blhd", batch=2),
    "slices": Case(layout="padded", batch=2, head_dim=13),
    "keys transposed": Case(layout="dhead"),
    "a scale": Case(scale=0.7),
    "a soft cap": Case(softcap=2.0, causal=UPPER_LEFT, l_q=5, l_kv=5),
    "a soft cap of large logits": Case(softcap=30.0, scale=40.0, l_q=5, l_kv=64),
    "upper left": Case(causal=UPPER_LEFT, l_q=9, l_kv=70),
    "lower right": Case(causal=LOWER_RIGHT, l_q=9, l_kv=70),
    "a window": Case(causal=LOWER_RIGHT, window=6, l_q=9, l_kv=70),
    "a window of one": Case(causal=UPPER_LEFT, window=1, l_q=40, l_kv=40),
    "a window past the keys": Case(causal=UPPER_LEFT, window=4, l_q=40, l_kv=20),
    "a window in long prefill": Case(causal=UPPER_LEFT, window=33, l_q=100, l_kv=100),
    "lengths": Case(batch=3, kv_len=(40, 17, 1)),
    "a length of zero": Case(batch=2, kv_len=(0, 40)),
    "lengths and lower right": Case(batch=3, kv_len=(40, 17, 2), causal=LOWER_RIGHT, l_q=4),
    "lengths and a window": Case(batch=2, kv_len=(39, 3), causal=LOWER_RIGHT, window=5),
    "positions": Case(causal=POSITIONS, positions=((3, 0, 39),)),
    "positions per batch": Case(causal=POSITIONS, batch=2, positions=((3, 0, 39), (7, 8, 9))),
    "positions outside": Case(causal=POSITIONS, positions=((-1, 100, 1 << 40),)),
    "positions and a window": Case(causal=POSITIONS, window=4, positions=((12, 30, 2),)),
    "positions and lengths": Case(causal=POSITIONS, batch=2, positions=((12, 30, 2),), kv_len=(5, 31)),
    "bool mask": Case(mask=("bool", (3, 40))),
    "bool mask per head": Case(batch=2, mask=("bool", (4, 3, 40))),
    "bool mask per batch": Case(batch=2, mask=("bool", (2, 1, 1, 40))),
    "float mask": Case(mask=("float", (1, 4, 1, 40))),
    "float mask of infinities": Case(mask=("inf", (3, 40))),
    "float mask of lowest numbers": Case(mask=("lowest", (3, 40))),
    "mask for keys": Case(mask=("bool", (40,))),
    "mask for rows": Case(mask=("bool", (3, 1))),
    "sinks": Case(sinks=True, batch=2),
    "sinks of heads in groups": Case(sinks=True, heads=15, kv_heads=3, l_q=2, causal=LOWER_RIGHT),
    "sinks and rows that see no key": Case(sinks=True, batch=2, kv_len=(0, 17), l_q=4),
    "sinks, a soft cap and a mask": Case(sinks=True, softcap=2.0, mask=("inf", (4, 3, 40)), l_kv=40),
    "a ring before it is full": Case(ring=True, **at((0, 3)), window=30),
    "a ring at its end": Case(ring=True, **at((37, 3)), window=38),
    "a ring that wraps in a chunk": Case(ring=True, **at((78, 9)), l_kv=41, window=33, l_q=9),
    "a ring of batches": Case(ring=True, **at((5, 3), (4100, 3)), batch=2, window=20, l_kv=33, layout="padded"),
    "a ring shorter than a block": Case(ring=True, **at((100, 2)), l_q=2, l_kv=7, window=6),
    "a ring of one token": Case(ring=True, **at((100, 1)), l_q=1, l_kv=23, window=1),
    "a ring far on": Case(ring=True, **at((1 << 30, 3)), window=38, l_kv=61, sinks=True),
    "a ring with everything": Case(
        ring=True,
        **at((63, 37)),
        l_q=37,
        l_kv=100,
        window=64,
        sinks=True,
        softcap=4.0,
        heads=6,
        kv_heads=2,
        head_dim=24,
    ),
    "mask and everything else": Case(
        batch=2, mask=("float", (4, 1, 40)), causal=LOWER_RIGHT, window=9, kv_len=(33, 8), softcap=3.0
    ),
}


@st.composite
def cases(draw: st.DrawFn, causal: int, kind: str | None) -> Case:
    # In the interpreter a program takes milliseconds: fewer of them; CASES have many heads.
    kv_heads, group = draw(st.integers(1, 3 if ON_GPU else 2)), draw(st.integers(1, 5 if ON_GPU else 3))
    batch = draw(st.integers(1, 2))
    l_q, l_kv = draw(st.integers(1, 300 if ON_GPU else 20)), draw(st.integers(1, 3000 if ON_GPU else 60))
    shape = tuple(draw(st.sampled_from([1, size])) for size in (batch, kv_heads * group, l_q, l_kv))
    rank = draw(st.integers(1, 4))
    rows = draw(st.sampled_from([1, batch]))
    # By a generator of their own: hundreds of single draws would be most of the test's time.
    random = Random(draw(st.integers(0, 1 << 30)))
    positions = tuple(tuple(random.randint(-2, l_kv + 2) for _ in range(l_q)) for _ in range(rows))
    return Case(
        batch=batch,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        l_q=l_q,
        l_kv=l_kv,
        head_dim=draw(st.integers(1, 512 if ON_GPU else 40)),
        dtype=draw(st.sampled_from(DTYPES)),
        causal=causal,
        window=0 if causal == FULL else draw(st.integers(0, l_kv + 2)),
        softcap=draw(st.sampled_from([0.0, 5.0])),
        layout=draw(st.sampled_from(["bhld", "blhd", "padded", "dhead"])),
        mask=None if kind is None else (kind, shape[-rank:]),
        kv_len=draw(st.sampled_from([None, tuple(draw(st.integers(0, l_kv)) for _ in range(batch))])),
        positions=positions if causal == POSITIONS else None,
        seed=draw(st.integers(0, 5)),
        sinks=draw(st.booleans()),
    )


@st.composite
def rings(draw: st.DrawFn) -> Case:
    """A ring that has been written for any time, with as many rows as its window leaves slots for."""
    l_q, window = draw(st.integers(1, 40 if ON_GPU else 18)), draw(st.integers(1, 2000 if ON_GPU else 50))
    batch = draw(st.integers(1, 2))
    starts = [(draw(st.integers(0, 5000)), l_q) for _ in range(batch)]
    return Case(
        batch=batch,
        heads=draw(st.sampled_from([2, 6])),
        l_q=l_q,
        l_kv=window + l_q - 1 + draw(st.integers(0, 40)),
        head_dim=draw(st.sampled_from([64, 128, 256, 512] if ON_GPU else [16, 40])),
        dtype=draw(st.sampled_from(DTYPES)),
        window=window,
        softcap=draw(st.sampled_from([0.0, 5.0])),
        layout=draw(st.sampled_from(["bhld", "padded"])),
        sinks=draw(st.booleans()),
        ring=True,
        **at(*starts),
    )


class AttentionChecks(Poisoned):
    def test_the_poison_reaches_the_operators(self) -> None:
        assert launch.empty_like_result(torch.zeros(1, 2, 3, 4)).isnan().all()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", CASES)
    def test_case(self, name: str, dtype: torch.dtype) -> None:
        check(dataclasses.replace(CASES[name], dtype=dtype))

    @pytest.mark.parametrize(("num_splits", "block_n"), alternate([1, 2, 5, 33], [16, 64]))
    def test_every_number_of_splits(self, num_splits: int, block_n: int) -> None:
        check(Case(batch=2, l_kv=200, kv_len=(200, 31), causal=LOWER_RIGHT, l_q=2), block_n, num_splits)

    def test_rows_that_are_masked_entirely(self) -> None:
        case = Case(mask=("bool", (3, 40)), l_q=3)
        (q, k, v), _, _, _ = make(case)
        mask = torch.ones(3, 40, dtype=torch.bool, device=DEVICE)
        mask[1] = False
        tail = (0.25, FULL, 0, 0.0, 16, 16, 4, 2)
        results = [
            op.attention_tiled(q, k, v, mask, None, None, *tail, 1, 4),
            op.attention_split(q, k, v, mask, None, None, *tail, 1, 2, 16, PDL),
            op.attention_split(q, k, v, mask, None, None, *tail, 3, 2, 16, PDL),
        ]
        for result in results:
            assert not result[:, :, 1].any()
            assert result[:, :, (0, 2)].abs().amin(-1).min() >= 0
            assert result[:, :, 0].any()
            assert not result.isnan().any()

    def test_a_row_of_lowest_finite_numbers_is_an_average(self) -> None:
        """As in PyTorch: such a mask adds the same to every logit."""
        (q, k, v), _, _, _ = make(Case())
        mask = torch.full((3, 40), torch.finfo(torch.float32).min, device=DEVICE)
        expected = v.float().mean(2).repeat_interleave(2, 1)
        tail = (0.25, FULL, 0, 0.0, 16, 16, 4, 2)
        for got in (
            op.attention_tiled(q, k, v, mask, None, None, *tail, 1, 4),
            op.attention_split(q, k, v, mask, None, None, *tail, 3, 2, 16, PDL),
        ):
            torch.testing.assert_close(got[:, :, 2].float(), expected, atol=2e-2, rtol=2e-2)

    def test_what_lies_beyond_the_keys_is_not_read(self) -> None:
        case = Case(layout="padded", batch=2, kv_len=(40, 9), causal=LOWER_RIGHT)
        (q, k, v), _, kv_len, _ = make(case)
        for tensor in (k, v):
            whole = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // 2,), (1,), 0)
            inside = tensor.clone()
            whole.fill_(torch.nan)
            tensor.copy_(inside)
            tensor[1, :, 9:] = torch.nan
        tail = (0.25, LOWER_RIGHT, 0, 0.0, 16, 16, 4, 2)
        assert not op.attention_tiled(q, k, v, None, kv_len, None, *tail, 1, 4).isnan().any()
        assert not op.attention_split(q, k, v, None, kv_len, None, *tail, 3, 2, 16, PDL).isnan().any()

    @pytest.mark.parametrize(("l_q", "l_kv", "batch"), [(3, 0, 1), (0, 5, 1), (2, 3, 0)])
    def test_empty_tensors(self, l_q: int, l_kv: int, batch: int) -> None:
        q, k = (torch.ones(batch, 2, length, 16, dtype=torch.float16, device=DEVICE) for length in (l_q, l_kv))
        tail = (0.25, FULL, 0, 0.0, 16, 16, 4, 2)
        for got in (
            op.attention_tiled(q, k, k, None, None, None, *tail, 1, 4),
            op.attention_split(q, k, k, None, None, None, *tail, 2, 2, 16, PDL),
        ):
            assert got.shape == q.shape
            assert not got.any()

    @pytest.mark.parametrize(
        ("causal", "kind"), alternate([FULL, UPPER_LEFT, LOWER_RIGHT, POSITIONS], [None, "bool", "float", "inf"])
    )
    @settings(
        # On a GPU nearly every example compiles its kernels.
        max_examples=12 if ON_GPU else 2,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(data=st.data())
    def test_any_case(self, causal: int, kind: str | None, data: st.DataObject) -> None:
        case = data.draw(cases(causal, kind))
        check(case, data.draw(st.sampled_from([16, 32])), data.draw(st.integers(1, 5)))

    @settings(
        max_examples=24 if ON_GPU else 3,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(case=rings(), block_n=st.sampled_from([16, 64]), num_splits=st.integers(1, 5))
    def test_any_ring(self, case: Case, block_n: int, num_splits: int) -> None:
        check(case, block_n, num_splits)

    @pytest.mark.parametrize("head_dim", [64, 96, 128, 256, 512] if ON_GPU else [])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_sizes_of_models(self, head_dim: int, dtype: torch.dtype) -> None:
        case = Case(2, 16, 4, 1, 5000, head_dim, dtype, layout="blhd")
        check(case, 32, 7)
        check(dataclasses.replace(case, l_q=700, l_kv=700, causal=UPPER_LEFT), 32, 7)
        check(dataclasses.replace(case, l_q=700, l_kv=1500, causal=LOWER_RIGHT, window=300), 32, 7)
        for count in (1, 33):
            ring = dataclasses.replace(case, l_q=count, l_kv=1535, window=1024, ring=True, sinks=True, softcap=30.0)
            check(dataclasses.replace(ring, **at((2000, count), (70, count))), 32, 7)
