from __future__ import annotations

import dataclasses
import logging
import pathlib

import pytest

from etcuda.errors import OptionError, TargetError
from etcuda.options import BackendConfig, CompileOptions
from etcuda.target import PORTABLE, TARGETS, CudaTarget, resolve_target


def test_config_survives_bytes() -> None:
    options = CompileOptions(allow_tf32=True, weights="ptd", ptd_name="weights", timeout_s=5)
    for target in (TARGETS["sm_90"], PORTABLE, "host"):
        config = BackendConfig(target, options, "decode")  # type: ignore[arg-type]
        assert BackendConfig.from_bytes(config.to_bytes()) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"allow_tf23": True}, ["allow_tf23", "allow_tf32", "Expected one of"]),
        ({"weights": "elsewhere"}, ["weights", "'pte' or 'ptd'", "'elsewhere'"]),
        ({"ptd_name": "a/b"}, ["ptd_name", "identifier", "'a/b'"]),
        ({"timeout_s": 0}, ["timeout_s", "positive", "0"]),
        ({"timeout_s": True}, ["timeout_s", "True"]),
        ({"host_isa": "avx2"}, ["host_isa", "x86-64-v3", "'avx2'"]),
        ({"progress": "yes"}, ["progress", "'yes'"]),
        ({"progress": 1}, ["progress", "1"]),
        ({"cache_dir": 3}, ["cache_dir", "3"]),
        ({"cache_dir": ""}, ["cache_dir", "path of a folder", "''"]),
        ({"cache_dir": "a\0b"}, ["cache_dir", r"'a\x00b'"]),
        ({"timeout_s": float("nan")}, ["timeout_s", "positive", "nan"]),
        ({"timeout_s": 10**400}, ["timeout_s", "positive"]),
        ({"compile_cache_gib": 1e308}, ["compile_cache_gib", "1e+308"]),
        ({"compile_cache_gib": -1}, ["compile_cache_gib", "-1"]),
        ({"random_seed": -1}, ["random_seed", "-1"]),
        ({"weights": ["pte"]}, ["weights", "['pte']"]),
        ({"hopper_experts": 1}, ["hopper_experts", "True or False", "1"]),
        ({3: True}, ["option 3", "Expected one of"]),
    ],
)
def test_bad_options_name_the_option_and_what_it_takes(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        CompileOptions.from_mapping(values)
    for word in words:
        assert word in str(caught.value)


def test_a_path_may_be_a_path(tmp_path: pathlib.Path) -> None:
    options = CompileOptions(cache_dir=tmp_path)  # type: ignore[arg-type]
    assert options == CompileOptions(cache_dir=str(tmp_path))
    assert BackendConfig.from_bytes(BackendConfig("host", options).to_bytes()).options == options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arch": "sm90"}, "arch: expected 'sm_80' or newer.*got 'sm90'"),
        ({"arch": "sm_90a"}, "arch: .*got 'sm_90a'"),
        ({"arch": "sm_75"}, "arch: .*got 'sm_75'"),
        ({"arch": 90}, "arch: .*got 90"),
        ({"num_sms": 0}, "num_sms: expected an integer > 0, got 0"),
        ({"shared_memory_per_block": 1e5}, "shared_memory_per_block: .*got 100000.0"),
        ({"memory_bandwidth": float("nan")}, "memory_bandwidth: .*got nan"),
        ({"code_kind": "sass"}, "code_kind: expected 'cubin' or 'ptx', got 'sass'"),
        ({"warp_size": 64}, "warp_size: expected 32, got 64"),
        ({"name": None}, "name: expected a string, got None"),
    ],
)
def test_a_target_that_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(TargetError, match=f"CudaTarget: {message}"):
        dataclasses.replace(TARGETS["sm_90"], **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b'{"target": "host"}', b'{"target": {"a": 1}, "options": {}, "method": "f"}', b"\xff"]
)
def test_bad_compile_spec(data: bytes) -> None:
    with pytest.raises(OptionError, match="CudaPartitioner"):
        BackendConfig.from_bytes(data)


@pytest.mark.parametrize("target", ["sm_91", "sm90", "90", "9.0", "gpu", "", "sm_75"])
def test_unknown_target_lists_the_known(target: str) -> None:
    with pytest.raises(TargetError) as caught:
        resolve_target(target)
    assert repr(target) in str(caught.value)
    assert "sm_90" in str(caught.value)


@pytest.mark.parametrize("target", ["sm90", "90", "9.0", "compute_90", "sm_90a"])
def test_near_miss_is_suggested(target: str) -> None:
    with pytest.raises(TargetError, match="Did you mean 'sm_90'"):
        resolve_target(target)


def test_target_of_wrong_type() -> None:
    with pytest.raises(TargetError, match="got int"):
        resolve_target(90)  # type: ignore[arg-type]


def test_a_target_of_ones_own_is_taken_as_it_is() -> None:
    own = dataclasses.replace(TARGETS["sm_90"], name="my H100", num_sms=114)
    assert resolve_target(own) is own


def test_auto_without_a_gpu_is_portable_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with caplog.at_level(logging.INFO, logger="etcuda"):
        assert resolve_target("auto") == PORTABLE
    assert len(caplog.records) == 1
    assert "no GPU here" in caplog.text
    assert "sm_80" in caplog.text


@pytest.mark.parametrize(("capability", "arch"), [((9, 0), "sm_90"), ((8, 9), "sm_89"), ((12, 0), "sm_120")])
def test_auto_takes_the_local_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], arch: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    resolved = resolve_target("auto")
    assert isinstance(resolved, CudaTarget)
    assert resolved.arch == arch


def test_auto_refuses_an_old_gpu_and_falls_back_on_an_unlisted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 5))
    with pytest.raises(TargetError, match=r"sm_75.*8\.0"):
        resolve_target("auto")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (13, 0))
    assert resolve_target("auto") == PORTABLE
