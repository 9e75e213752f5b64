from __future__ import annotations

import pathlib

import pytest
import torch

from examples.bundle import load_bundle, make_bundle, save_bundle
from examples.cpp.session import from_bytes, to_bytes, write_session
from examples.models import CASES, relative_error


def test_round_trip(tmp_path: pathlib.Path) -> None:
    bundle = make_bundle("decoder-bf16")
    save_bundle(bundle, tmp_path / "x.pt")
    read = load_bundle(tmp_path / "x.pt")
    assert read.name == bundle.name
    assert [c.method for c in read.calls] == [c.method for c in bundle.calls]
    assert relative_error(read.eager, bundle.eager) == 0
    assert relative_error(read.fp32, bundle.fp32) == 0


def test_verdict_refuses_what_is_too_far() -> None:
    bundle = make_bundle("mlp-bf16")
    assert bundle.verdict(bundle.eager).passed
    assert bundle.verdict(bundle.fp32).passed
    assert not bundle.verdict([o * 1.03 for o in bundle.eager]).passed
    # Within tolerance of eager, yet twice as far from fp32 as eager is.
    doubled = [f + 2.0 * (e.float() - f) for e, f in zip(bundle.eager, bundle.fp32, strict=True)]
    verdict = bundle.verdict(doubled)
    assert verdict.error < verdict.tolerance
    assert not verdict.passed


def test_verdict_refuses_nan() -> None:
    bundle = make_bundle("mlp-fp32")
    outputs = [o.clone() for o in bundle.eager]
    outputs[1][0, 0] = float("nan")
    assert not bundle.verdict(outputs).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_raw_bytes_of_a_strided_tensor(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).t().to(dtype)
    assert torch.equal(from_bytes(to_bytes(tensor), tensor), tensor)
    with pytest.raises(ValueError, match="expected"):
        from_bytes(to_bytes(tensor)[1:], tensor)


def test_session_file_names_method_dtype_sizes_and_file(tmp_path: pathlib.Path) -> None:
    calls = CASES["decoder-fp32"].session(torch.float32)
    lines = write_session(tmp_path, calls).read_text().splitlines()
    assert len(lines) == len(calls)
    method, tokens, positions = lines[0].split()
    assert method == "prefill"
    assert tokens.startswith("int64:1x13:")
    assert positions.startswith("int64:13:")
    assert pathlib.Path(tokens.split(":")[2]).stat().st_size == 13 * 8
