"""Whole exports on a machine that need not have a GPU: reproducible, isolated, and clean when they fail."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.backend.compile_spec_schema import CompileSpec
from torch.export import Dim

from etcuda import CudaPartitioner
from etcuda.backend.inspect import inspect_program
from etcuda.backend.worker import client
from etcuda.errors import CompileError, OptionError
from etcuda.scratch import TEMPORARY, scratch_folder

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.usefixtures("compiled_anew")

SCRIPT = """
import signal, sys, torch
# A job in the background of a shell inherits an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
from torch.export import Dim, export
from executorch.exir import to_edge_transform_and_lower
from etcuda import CudaPartitioner

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(24, 40)
        self.register_buffer("total", torch.zeros(40))

    def forward(self, x):
        y = torch.nn.functional.gelu(self.linear(x))
        self.total.add_(y.sum(0))
        return y.softmax(-1) + self.total

torch.manual_seed(0)
program = export(Net(), (torch.randn(5, 24),), dynamic_shapes=({0: Dim("batch", max=32)},))
for target, path in zip(sys.argv[1::2], sys.argv[2::2]):
    lowered = to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target, {"compile_cache_gib": 0})])
    lowered.to_executorch().save(path)
"""


def start_export(
    *arguments: str, script: pathlib.Path | None = None, cwd: pathlib.Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """``SCRIPT``, or a file with it, for some targets, each followed by the path of its program."""
    # An empty entry would be the folder that the process runs in.
    roots = filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), **environment}
    return subprocess.Popen(
        [sys.executable, *(("-c", SCRIPT) if script is None else (str(script),)), *arguments],
        env=variables,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


# A portable program's PTX is what a cubin is made of.
CODE_KINDS = {"host": "native", "sm_90": "cubin"}


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """A folder, and two in it with a program for each of ``CODE_KINDS``, named after it."""
    root = tmp_path_factory.mktemp("two processes")
    folders = []
    # What differs between two machines: where temporary files lie, hash seeds, what was exported before, and what is
    # cached: the second one has the kernels of the first, all of them damaged. And where the user is in the second,
    # there are files with the names of modules.
    for index, order in enumerate((list(CODE_KINDS), list(CODE_KINDS)[::-1])):
        folder = root / f"a folder {index}"
        folder.mkdir()
        if index:
            shutil.copytree(folders[0] / "cache", folder / "cache")
            damaged = [path for end in ("cubin", "ptx") for path in (folder / "cache").rglob(f"*.{end}")]
            assert damaged
            for path in damaged:
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
        arguments = [word for target in order for word in (target, str(folder / f"{target}.pte"))]
        variables = {"PYTHONHASHSEED": str(index + 1), "TMPDIR": str(folder), "ETCUDA_CACHE_DIR": str(folder / "cache")}
        here, script = folder / "here", folder / "script.py"
        here.mkdir()
        script.write_text(SCRIPT)
        for name in ("torch.py", "triton.py", "etcuda.py", "json.py") if index else ():
            (here / name).write_text("raise RuntimeError('the wrong module')\n")
        process = start_export(*arguments, script=script, cwd=here, **variables)
        log, _ = process.communicate()
        assert process.returncode == 0, log
        folders.append(folder)
    return root, folders


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
@pytest.mark.parametrize("target", CODE_KINDS)
def test_two_processes_write_the_same_bytes(
    target: str, in_two_processes: tuple[pathlib.Path, list[pathlib.Path]]
) -> None:
    root, folders = in_two_processes
    outputs = [(folder / f"{target}.pte").read_bytes() for folder in folders]
    assert outputs[0] == outputs[1]
    (image,) = inspect_program(outputs[0]).methods[0].delegates[0].images
    assert image.num_kernels > 0
    assert image.code_kind == CODE_KINDS[target]
    for path in (str(root), str(pathlib.Path.home()), str(ROOT)):
        assert path.encode() not in outputs[0]


def test_modules_of_ours_are_not_found_under_their_bare_names() -> None:
    """Where etcuda is installed, its parts lie in one folder, and some are named as modules of Python are."""
    root = client.import_root()
    assert (root / "etcuda" / "options.py").is_file()
    assert not (root / "options.py").exists()


def group_members(root_pid: int) -> list[int]:
    """Processes whose environment or ancestry leads back to ``root_pid``, found by session or parent."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (
                    b"etcuda.backend.worker.server" in (entry / "cmdline").read_bytes()
                    and f"ETCUDA_TEST={root_pid}".encode() in (entry / "environ").read_bytes()
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_interrupt_leaves_no_file_and_no_process(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pte"
    marker = os.getpid()
    process = start_export("sm_90", str(path), TMPDIR=str(tmp_path), ETCUDA_TEST=str(marker))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("etcuda-*/0/log.txt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the export never reached the compile worker"
        time.sleep(0.05)
    assert group_members(marker)
    process.send_signal(signal.SIGINT)
    log, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in log
    assert not path.exists()
    assert list(tmp_path.glob("etcuda-*")) == []
    assert group_members(marker) == []


def test_workers_end_with_a_killed_parent(tmp_path: pathlib.Path) -> None:
    marker = os.getpid() + 10**6
    process = start_export("host", str(tmp_path / "net.pte"), TMPDIR=str(tmp_path), ETCUDA_TEST=str(marker))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("etcuda-*/0/log.txt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    while group_members(marker):
        assert time.monotonic() < deadline, "a compile worker outlived its parent"
        time.sleep(0.05)
    assert list(tmp_path.glob("etcuda-*"))
    with scratch_folder(tmp_path, TEMPORARY) as mine:
        assert list(tmp_path.glob("etcuda-*")) == [mine], "the next export takes away what was left"


@pytest.fixture
def worker_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that end the worker: the one that other tests use is put aside meanwhile."""
    with monkeypatch.context() as aside:
        aside.setattr(client, "_running", [])
        yield
        client.shut_down()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


def lower(**options: object) -> object:
    program = torch.export.export(Net(), (torch.randn(3, 8),), dynamic_shapes=({0: Dim("b", max=9)},))
    return to_edge_transform_and_lower(program, partitioner=[CudaPartitioner(target="host", options=options)])


def test_missing_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiler is that of the job, whenever the worker was started.
    worker = client._server(client.default_cache_dir())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match=r"compiling forward: C\+\+ compiler 'no-such-compiler'.*install g\+\+"):
        lower()
    # The worker goes on.
    assert client._running == [worker]
    assert worker.is_alive()
    assert not worker.is_busy()


def test_failing_compiler_shows_what_it_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho the disk is on fire; exit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(CompileError, match=r"(?s)ended with 3.*the disk is on fire"):
        lower()


@pytest.mark.usefixtures("worker_of_its_own")
def test_timeout_is_an_error_and_the_next_export_works(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(CompileError, match=r"compiling forward took longer than timeout_s=0.01"):
        lower(timeout_s=0.01)
    assert list(tmp_path.iterdir()) == []
    lower()


def test_a_job_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "write_request", lambda folder, _request: (folder / "request.json").write_text("{"))
    with pytest.raises(CompileError, match="compiling forward: "):
        lower()


def test_export_says_what_it_cost(caplog: pytest.LogCaptureFixture) -> None:
    start, start_cpu = time.perf_counter(), time.process_time()
    with caplog.at_level(logging.INFO, "etcuda.backend.preprocess"):
        lower()
    (record,) = (record for record in caplog.records if hasattr(record, "export_cost"))
    assert re.fullmatch(r"forward for host: [\d.]+ s, [\d.]+ s of processor time", record.getMessage())
    cost = record.export_cost
    assert cost["target"] == "host"
    assert 0 < cost["seconds"] <= time.perf_counter() - start
    # More than in this process: that of the worker and the compilers.
    assert cost["cpu_seconds"] > 0.5 + (time.process_time() - start_cpu)


def test_export_leaves_the_process_as_it_was() -> None:
    from torch._dynamo import device_interface

    before = (
        torch.cuda.get_device_properties,
        device_interface.get_interface_for_device("cuda"),
        torch.cuda.is_initialized(),
    )
    lower()
    after = (
        torch.cuda.get_device_properties,
        device_interface.get_interface_for_device("cuda"),
        torch.cuda.is_initialized(),
    )
    assert before == after


def test_foreign_compile_specs_are_refused() -> None:
    from etcuda.backend.preprocess import EtcudaBackend

    program = torch.export.export(Net(), (torch.randn(3, 8),))
    with pytest.raises(OptionError, match=r"exactly one, 'etcuda', got \['max_autotune'\]"):
        EtcudaBackend.preprocess(program, [CompileSpec("max_autotune", b"1")])


def test_weights_are_stored_once_across_methods_and_can_be_external(tmp_path: pathlib.Path) -> None:
    net = Net()
    ctas = {name: torch.export.export(net, (torch.randn(rows, 8),)) for name, rows in (("prefill", 4), ("decode", 1))}
    for place in ("pte", "ptd"):
        options = {"weights": place, "ptd_name": "weights"}
        lowered = to_edge_transform_and_lower(ctas, partitioner=[CudaPartitioner(target="host", options=options)])
        executorch = lowered.to_executorch()
        executorch.save(str(tmp_path / "net.pte"))
        executorch.write_tensor_data_to_file(str(tmp_path))
        data = (tmp_path / "net.pte").read_bytes()
        weight = net.linear.weight.detach().numpy().tobytes()
        stored = {file.name: file.read_bytes().count(weight) for file in tmp_path.iterdir()}
        assert stored == ({"net.pte": 1} if place == "pte" else {"net.pte": 0, "weights.ptd": 1})
        info = inspect_program(data)
        assert {method.name for method in info.methods} == {"prefill", "decode"}
        keys = [{s.key for s in method.delegates[0].storages} for method in info.methods]
        assert keys[0] == keys[1]
