"""Compiled graphs that are kept between exports: found again, never another's, never damaged, bounded."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import pathlib

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import nn
from torch.export import Dim, export

from etcuda import CudaPartitioner
from etcuda.backend.worker import cache, client
from etcuda.backend.worker.cache import CompileCache, job_key
from etcuda.backend.worker.job import JobRequest, JobResult, write_request
from etcuda.options import CompileOptions
from etcuda.target import resolve_target

KEYS = [f"{number:064x}" for number in range(1, 9)]
RESULT = JobResult(b"\x7fELF" + bytes(range(256)) * 40, [("w0", "layer.weight")], 3, {"kernel": {"registers": 40}})


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> CompileCache:
    return CompileCache(tmp_path / "kept", 1 << 20)


def test_what_was_kept_is_found(kept: CompileCache) -> None:
    assert kept.get(KEYS[0]) is None
    kept.put(KEYS[0], RESULT)
    assert kept.get(KEYS[0]) == RESULT
    assert kept.get(KEYS[1]) is None


@pytest.mark.parametrize("place", [0, 8, 40, 72, 80, 88, 200, -1])
def test_a_changed_byte_is_as_no_entry(
    place: int, kept: CompileCache, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.put(KEYS[0], RESULT)
    path = tmp_path / "kept" / KEYS[0]
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert kept.get(KEYS[0]) is None
    assert f"{path} is damaged" in caplog.text
    kept.put(KEYS[0], RESULT)
    assert kept.get(KEYS[0]) == RESULT


@pytest.mark.parametrize("size", [0, 7, 79, 80, 84, 300])
def test_the_beginning_of_a_file_is_as_no_entry(size: int, kept: CompileCache, tmp_path: pathlib.Path) -> None:
    kept.put(KEYS[0], RESULT)
    path = tmp_path / "kept" / KEYS[0]
    path.write_bytes(path.read_bytes()[:size])
    assert kept.get(KEYS[0]) is None


def test_anothers_entry_is_as_none(kept: CompileCache, tmp_path: pathlib.Path) -> None:
    kept.put(KEYS[0], RESULT)
    (tmp_path / "kept" / KEYS[0]).rename(tmp_path / "kept" / KEYS[1])
    assert kept.get(KEYS[1]) is None


def test_those_unused_for_longest_go_first(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "kept"
    size = len(cache._pack(KEYS[0], RESULT))
    kept = CompileCache(folder, 3 * size)
    for age, key in enumerate(KEYS[:3]):
        kept.put(key, RESULT)
        os.utime(folder / key, (100 + age, 100 + age))
    assert kept.get(KEYS[0]) == RESULT
    kept.put(KEYS[3], RESULT)
    assert {path.name for path in folder.iterdir()} == {KEYS[0], KEYS[2], KEYS[3]}
    # One that is larger than all may be is not kept, and costs no other its place.
    kept.put(KEYS[4], dataclasses.replace(RESULT, image=bytes(4 * size)))
    assert {path.name for path in folder.iterdir()} == {KEYS[0], KEYS[2], KEYS[3]}


def test_a_folder_that_cannot_be_is_no_reason_to_fail(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    kept = CompileCache(tmp_path / "file" / "kept", 1 << 20)
    with caplog.at_level(logging.INFO):
        kept.put(KEYS[0], RESULT)
    assert "not kept" in caplog.text
    assert kept.get(KEYS[0]) is None


def _use(folder: pathlib.Path, limit: int, first: int) -> None:
    kept = CompileCache(folder, limit)
    for turn in range(60):
        key = KEYS[(first + turn) % len(KEYS)]
        expected = dataclasses.replace(RESULT, num_kernels=int(key, 16))
        found = kept.get(key)
        assert found is None or found == expected
        kept.put(key, expected)


def test_processes_share_a_folder(tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("fork")
    limit = 4 * len(cache._pack(KEYS[0], RESULT))
    processes = [context.Process(target=_use, args=(tmp_path / "kept", limit, first)) for first in (0, 1, 4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    left = list((tmp_path / "kept").iterdir())
    assert not [path for path in left if path.name not in KEYS]
    assert sum(path.stat().st_size for path in left) <= limit


class Scaled(nn.Module):
    """A layer, and a number that stands in the graph."""

    def __init__(self, factor: float, name: str = "layer") -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.Linear(6, 5))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer: nn.Linear = getattr(self, self.name)
        return layer(x) * self.factor


def key_of(
    folder: pathlib.Path, model: nn.Module | None = None, most: int = 9, target: str = "host", **options: object
) -> str:
    model = Scaled(2.0) if model is None else model
    program = export(model, (torch.randn(3, 6),), dynamic_shapes=({0: Dim("b", max=most)},)).run_decompositions()
    found = resolve_target(target)
    where = folder / f"{len(list(folder.iterdir()))}"
    where.mkdir()
    write_request(where, JobRequest(program, found, CompileOptions.from_mapping(options), {}))
    key = job_key(where)
    assert key is not None
    return key


def test_a_key_is_of_all_that_is_compiled(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(tmp_path)
    others = [
        key_of(tmp_path, Scaled(2.5)),
        key_of(tmp_path, Scaled(2.0, "another")),
        key_of(tmp_path, most=10),
        key_of(tmp_path, target="sm_90"),
        key_of(tmp_path, target="sm_80"),
        key_of(tmp_path, host_isa="x86-64-v4"),
        key_of(tmp_path, allow_tf32=True),
        key_of(tmp_path, nn.Sequential(Scaled(2.0), nn.ReLU())),
    ]
    for name, value in {"CXX": "g++ -O1", "TORCHINDUCTOR_UNROLL_REDUCTIONS_THRESHOLD": "2"}.items():
        monkeypatch.setenv(name, value)
        others.append(key_of(tmp_path))
        monkeypatch.delenv(name)
    for name in ("_versions", "_sources_digest"):
        monkeypatch.setattr(cache, name, lambda: "another")
        others.append(key_of(tmp_path))
        monkeypatch.undo()
    assert len({key, *others}) == 1 + len(others)


def test_a_key_is_of_nothing_else(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other weights, another line that it was written in, another place for what is kept.
    same = [
        key_of(tmp_path),
        key_of(tmp_path, Scaled(2.0)),
        key_of(tmp_path, progress=False, timeout_s=3.0, cache_dir=str(tmp_path), compile_cache_gib=1, weights="ptd"),
    ]
    monkeypatch.setenv("ETCUDA_CACHE_DIR", "/elsewhere")
    same.append(key_of(tmp_path))
    assert len(set(same)) == 1


def test_without_a_compiler_that_is_known_nothing_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_of(tmp_path)
    for compiler in ("no-such-compiler", "true"):
        monkeypatch.setenv("CXX", compiler)
        assert job_key(tmp_path / "0") is None


def lower(model: nn.Module, folder: pathlib.Path) -> bytes:
    program = export(model, (torch.randn(3, 6),), dynamic_shapes=({0: Dim("b", max=9)},))
    partitioner = CudaPartitioner("host", {"cache_dir": str(folder), "progress": False})
    found: bytes = to_edge_transform_and_lower(program, partitioner=[partitioner]).to_executorch().buffer
    return found


def test_a_graph_is_compiled_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    compile_jobs = client._compile

    def count(folders: list[pathlib.Path], labels: list[str], options: CompileOptions) -> list[JobResult]:
        asked.append(len(folders))
        return compile_jobs(folders, labels, options) if folders else []

    monkeypatch.setattr(client, "_compile", count)
    with monkeypatch.context() as aside:
        aside.setattr(client, "_running", [])
        models = [Scaled(2.0), Scaled(2.0)]
        first = lower(models[0], tmp_path)
        assert lower(models[0], tmp_path) == first
        # Weights are no part of what is compiled, and each program has its own.
        second = lower(models[1], tmp_path)
        assert second != first
        weights = [model.layer.weight.detach().numpy().tobytes() for model in models]
        assert [weight in first for weight in weights] == [True, False]
        assert [weight in second for weight in weights] == [False, True]
        # A damaged entry is compiled again, to the same bytes.
        (entry,) = (tmp_path / "delegates").iterdir()
        entry.write_bytes(entry.read_bytes()[:-1])
        assert lower(models[0], tmp_path) == first
        client.shut_down()
    assert asked == [1, 0, 0, 1]
