"""The C++ tests under AddressSanitizer and UBSan; as they are with ``--exhaustive``, for sanitizers see more."""

from __future__ import annotations

import pathlib
import re

import pytest

from .conftest import run

SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}
# A test that fails leaves at once, and its memory behind.
FAILING = {**SANITIZERS, "ASAN_OPTIONS": SANITIZERS["ASAN_OPTIONS"].replace("detect_leaks=1", "detect_leaks=0")}


def _passes(build: pathlib.Path, program: str, *arguments: str, **environment: str) -> str:
    done = run(build / "tests" / "runtime" / program, *arguments, **environment)
    failed = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
    assert done.returncode == 0, "\n".join(failed) + done.stderr[-4000:]
    return done.stdout


def _fakes(build: pathlib.Path) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(build / "tests" / "runtime" / "fakes")}


@pytest.mark.exhaustive
def test_units(optimised_build: pathlib.Path) -> None:
    assert re.search(r"^[1-9]\d* run, 0 failed$", _passes(optimised_build, "etcuda_unit_tests"), re.MULTILINE)


@pytest.mark.exhaustive
def test_cuda_with_a_fake_driver(optimised_build: pathlib.Path) -> None:
    output = _passes(optimised_build, "etcuda_cuda_tests", **_fakes(optimised_build))
    assert re.search(r"^[1-9]\d* run, 0 failed$", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"ETCUDA_FAKE_CUDA_BROKEN": "1"}, "did not start"), ({"LD_LIBRARY_PATH": ""}, "could not be opened")],
)
def test_cuda_driver_that_does_not_start(sanitized_build: pathlib.Path, changes: dict[str, str], words: str) -> None:
    done = run(
        sanitized_build / "tests" / "runtime" / "etcuda_cuda_tests",
        "cuda_large_weights",
        **{**_fakes(sanitized_build), **FAILING, **changes},
    )
    if changes.get("LD_LIBRARY_PATH") == "" and done.returncode == 0:
        pytest.skip("this machine has a driver of its own")
    assert done.returncode == 1
    assert words in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ETCUDA_CUDNN": "/nowhere/libcudnn.so.9"}, "ETCUDA_CUDNN names a library that cannot be used: cuDNN was not"),
        # The call is left to the program, which the test of plans does not expect.
        ({"ETCUDA_CUDNN": "off"}, "on the program's own kernels: ETCUDA_CUDNN is off."),
        ({"ETCUDA_FAKE_CUDNN_VERSION": "8907"}, "kernels: cuDNN: expected version 9 or newer, got 8907."),
    ],
)
def test_without_cudnn(sanitized_build: pathlib.Path, changes: dict[str, str], words: str) -> None:
    done = run(
        sanitized_build / "tests" / "runtime" / "etcuda_cuda_tests",
        "cuda_convolutions_of_a_shape",
        **{**_fakes(sanitized_build), **FAILING, **changes},
    )
    assert done.returncode == 1
    assert words in done.stdout + done.stderr
    assert ("first.run()" in done.stdout) == ("nowhere" not in changes.get("ETCUDA_CUDNN", ""))


@pytest.mark.slow
def test_units_sanitized(sanitized_build: pathlib.Path) -> None:
    output = _passes(sanitized_build, "etcuda_unit_tests", **SANITIZERS)
    assert re.search(r"^[1-9]\d* run, 0 failed$", output, re.MULTILINE)


@pytest.mark.slow
def test_cuda_sanitized(sanitized_build: pathlib.Path) -> None:
    output = _passes(sanitized_build, "etcuda_cuda_tests", **_fakes(sanitized_build), **SANITIZERS)
    assert re.search(r"^[1-9]\d* run, 0 failed$", output, re.MULTILINE)


@pytest.mark.slow
def test_mutated_blobs_end_in_errors(sanitized_build: pathlib.Path) -> None:
    output = _passes(sanitized_build, "etcuda_fuzz_blob", "4000", "1", **SANITIZERS)
    assert re.search(r"^4000 blobs, \d+ errors of \d+ kinds, no crash$", output, re.MULTILINE)
