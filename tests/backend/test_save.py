from __future__ import annotations

import os
import pathlib
import resource
import socket
import stat
from collections.abc import Callable
from typing import IO

import pytest
import torch
from executorch.exir import ExecutorchProgramManager, to_edge, to_edge_transform_and_lower
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir._serialize.data_serializer import DataPayload
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorConfig, FlatTensorSerializer

from etcuda import CudaPartitioner, EtcudaError, save_program
from etcuda.backend.preprocess import weight_key
from etcuda.errors import SaveError
from etcuda.options import OWN_PTD_TAG


@pytest.fixture(scope="module")
def program() -> ExecutorchProgramManager:
    return to_edge(torch.export.export(torch.nn.Linear(4, 3), (torch.randn(2, 4),))).to_executorch()


class Program:
    """What ``save_program`` asks of a program without a method, with one weight in each external file."""

    methods: frozenset[str] = frozenset()

    def __init__(self, weight: int, *tags: str, nbytes: int = 1000) -> None:
        key = weight_key(bytes([weight]) * 32)
        self.pte = b"\0\0\0\0ET12" + key.encode() * len(tags)
        self.ptd = _flat_tensor(key, bytes([weight]) * nbytes)
        self.tags = tags

    def write_tensor_data_to_file(self, folder: str) -> None:
        for tag in self.tags:
            (pathlib.Path(folder) / f"{tag}.ptd").write_bytes(self.ptd)

    def write_to_file(self, file: IO[bytes]) -> None:
        file.write(self.pte)


def _flat_tensor(key: str, data: bytes) -> bytes:
    store = NamedDataStore()
    store.add_named_data(key, data)
    stored = store.get_named_data_store_output()
    payload = DataPayload(buffers=stored.buffers, named_data=stored.pte_data)
    return bytes(FlatTensorSerializer(FlatTensorConfig()).serialize(payload))


def _save(program: Program, path: pathlib.Path, overwrite_weights: bool = False) -> list[str]:
    written = save_program(program, path, overwrite_weights=overwrite_weights)  # type: ignore[arg-type]
    assert not [each for each in path.parent.iterdir() if each.name.startswith(".")]
    return [each.name for each in written]


def test_writes_the_program_and_nothing_else(program: ExecutorchProgramManager, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"old")
    assert save_program(program, path) == [path]
    assert path.read_bytes() == program.buffer
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder(program: ExecutorchProgramManager, tmp_path: pathlib.Path) -> None:
    with pytest.raises(EtcudaError, match=r"model\.pte: expected a path that can be written.*No such file"):
        save_program(program, tmp_path / "no" / "model.pte")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("new/", "got one of a folder. Add the file's name"),
        ("a\0b.pte", r"a\\x00b.pte': expected the path of a file, got one with a null character"),
        ("loop", "expected a path that can be written, got: Too many levels"),
        ("file/model.pte", "expected a path that can be written, got: Not a directory"),
        ("n" * 300, "expected a path that can be written, got: File name too long"),
    ],
)
def test_paths_of_no_file(name: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("a file")
    before = sorted(tmp_path.iterdir())
    for path in (f"{tmp_path}/{name}", os.fsencode(f"{tmp_path}/{name}")):
        with pytest.raises(SaveError, match=message):
            save_program(Program(1, OWN_PTD_TAG), path)  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before


def test_names_that_a_shell_would_read_are_names(tmp_path: pathlib.Path) -> None:
    names = ("a b.pte", "-rf.pte", "$(id).pte", "\u00e9\n.pte", "~", ".pte")
    for name in names:
        save_program(Program(1), tmp_path / name)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_what_is_no_program(tmp_path: pathlib.Path) -> None:
    exported = torch.export.export(torch.nn.Linear(4, 3), (torch.randn(2, 4),))
    for wrong in (exported, to_edge(exported), None):
        with pytest.raises(TypeError, match=r"program: expected what to_executorch\(\) returns, got .*Call"):
            save_program(wrong, tmp_path / "model.pte")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(
    program: ExecutorchProgramManager, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"old")

    def fill(_file: object) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    monkeypatch.setattr(program, "write_to_file", fill)
    with pytest.raises(EtcudaError, match="No space left"):
        save_program(program, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "beside"), [("m.pte", "m.ptd"), ("m.v1", "m.v1.ptd"), ("m", "m.ptd")])
def test_weights_are_named_after_the_program(tmp_path: pathlib.Path, name: str, beside: str) -> None:
    first, second = Program(1, OWN_PTD_TAG), Program(2, OWN_PTD_TAG)
    assert _save(first, tmp_path / name) == [beside, name]
    assert _save(second, tmp_path / "other.pte") == ["other.ptd", "other.pte"]
    assert (tmp_path / beside).read_bytes() == first.ptd
    assert (tmp_path / "other.ptd").read_bytes() == second.ptd


@pytest.mark.parametrize("tag", [OWN_PTD_TAG, "shared"])
def test_saving_again_replaces_the_weights_too(tmp_path: pathlib.Path, tag: str) -> None:
    path = tmp_path / "m.pte"
    weights = tmp_path / ("m.ptd" if tag == OWN_PTD_TAG else "shared.ptd")
    for weight in (1, 2, 2, 3):
        made = Program(weight, tag)
        _save(made, path)
        assert (weights.read_bytes(), path.read_bytes()) == (made.ptd, made.pte)


def test_another_programs_weights_are_not_taken_away(tmp_path: pathlib.Path) -> None:
    first, same, other = Program(1, "shared"), Program(1, "shared"), Program(2, "shared")
    _save(first, tmp_path / "a.pte")
    before = (tmp_path / "shared.ptd").stat()
    # Of the same content: one file serves both, and stays.
    _save(same, tmp_path / "b.pte")
    after = (tmp_path / "shared.ptd").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(EtcudaError, match=r"shared\.ptd: expected no such file.*another program.*overwrite_weights"):
        _save(other, tmp_path / "c.pte")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.pte", "b.pte", "shared.ptd"]
    assert (tmp_path / "shared.ptd").read_bytes() == first.ptd
    _save(other, tmp_path / "c.pte", overwrite_weights=True)
    assert (tmp_path / "shared.ptd").read_bytes() == other.ptd


def test_a_name_that_another_program_chose(tmp_path: pathlib.Path) -> None:
    _save(Program(1, "m"), tmp_path / "a.pte")
    with pytest.raises(EtcudaError, match=r"m\.ptd: expected no such file"):
        _save(Program(2, OWN_PTD_TAG), tmp_path / "m.pte")
    # The program that stands there holds its weights in itself.
    (tmp_path / "m.pte").write_bytes(Program(3).pte)
    with pytest.raises(EtcudaError, match=r"m\.ptd: expected no such file"):
        _save(Program(2, OWN_PTD_TAG), tmp_path / "m.pte")


def test_a_file_that_is_not_etcudas_is_in_the_way(tmp_path: pathlib.Path) -> None:
    for content in (b"", b"a list of things", _flat_tensor("somebody's", b"1")):
        (tmp_path / "m.ptd").write_bytes(content)
        with pytest.raises(EtcudaError, match=r"m\.ptd.*got a file that is not etcuda's"):
            _save(Program(1, OWN_PTD_TAG), tmp_path / "m.pte")
        assert (tmp_path / "m.ptd").read_bytes() == content
        assert not (tmp_path / "m.pte").exists()


def test_two_files_of_one_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(EtcudaError, match=r"m\.ptd: expected one file of external weights"):
        _save(Program(1, OWN_PTD_TAG, "m"), tmp_path / "m.pte")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.ptd").symlink_to("m.pte")
    (tmp_path / "m.pte").write_bytes(b"")
    with pytest.raises(EtcudaError, match=r"m\.pte: expected a file for it alone, got the file of x\.ptd too"):
        _save(Program(1, "x"), tmp_path / "m.pte", overwrite_weights=True)


def test_links_and_modes_are_kept(tmp_path: pathlib.Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, mode in (("real.pte", 0o640), ("real.ptd", 0o600)):
        (elsewhere / name).write_bytes(b"old")
        (elsewhere / name).chmod(mode)
        (tmp_path / f"m{name[4:]}").symlink_to(pathlib.Path("elsewhere") / name)
    (tmp_path / "n.pte").symlink_to("elsewhere/new.pte")
    made = Program(1, OWN_PTD_TAG)
    _save(made, tmp_path / "m.pte", overwrite_weights=True)
    _save(made, tmp_path / "n.pte")
    assert all((tmp_path / name).is_symlink() for name in ("m.pte", "m.ptd", "n.pte"))
    assert [each.read_bytes() for each in sorted(elsewhere.iterdir())] == [made.pte, made.ptd, made.pte]
    assert stat.S_IMODE((elsewhere / "real.pte").stat().st_mode) == 0o640
    assert stat.S_IMODE((elsewhere / "real.ptd").stat().st_mode) == 0o600


def test_a_new_file_has_the_mode_of_any_other(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o027)
    try:
        _save(Program(1, OWN_PTD_TAG), tmp_path / "m.pte")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {0o640}


def _socket(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "got a folder"),
        (lambda path: os.mkfifo(path), "got a FIFO"),
        (_socket, "got a socket"),
        (lambda path: path.symlink_to("/dev/null"), "got a device"),
        (lambda path: path.symlink_to(path.name), "Too many levels|Symlink loop"),
    ],
)
@pytest.mark.parametrize("name", ["m.pte", "m.ptd"])
def test_what_is_no_file_is_not_replaced(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[pathlib.Path], None],
    words: str,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # The path of a socket is short.
    make(pathlib.Path(name))
    with pytest.raises(EtcudaError, match=words):
        _save(Program(1, OWN_PTD_TAG), tmp_path / "m.pte", overwrite_weights=True)
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("large", ["pte", "ptd"])
def test_a_full_disk_leaves_the_old_files(tmp_path: pathlib.Path, large: str) -> None:
    path = tmp_path / "m.pte"
    old = Program(1, OWN_PTD_TAG)
    _save(old, path)
    new = Program(2, OWN_PTD_TAG, nbytes=1 << 20 if large == "ptd" else 10)
    if large == "pte":
        new.pte += bytes(1 << 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(EtcudaError, match=r"File too large.*there is room"):
            save_program(new, path)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "m.ptd").read_bytes() == old.ptd
    assert path.read_bytes() == old.pte
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("exists", [True, False])
def test_a_program_that_cannot_be_replaced_takes_its_weights_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    path = tmp_path / "m.pte"
    old = Program(1, OWN_PTD_TAG)
    if exists:
        _save(old, path)
    replace = pathlib.Path.replace

    def fail(self: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        if self.name == "new" and target.suffix == ".pte":
            raise PermissionError(1, "Operation not permitted")
        return replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(EtcudaError, match="Operation not permitted"):
        _save(Program(2, OWN_PTD_TAG), path)
    left = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert left == ({"m.pte": old.pte, "m.ptd": old.ptd} if exists else {})


def test_two_programs_of_one_folder_run(tmp_path: pathlib.Path) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    import etcuda.runtime  # noqa: F401

    x = torch.ones(1, 4)
    for name, weight in (("a", 2.0), ("b", 3.0)):
        model = torch.nn.Linear(4, 1, bias=False)
        torch.nn.init.constant_(model.weight, weight)
        partitioner = CudaPartitioner("host", options={"progress": False, "weights": "ptd"})
        lowered = to_edge_transform_and_lower(torch.export.export(model, (x,)), partitioner=[partitioner])
        written = save_program(lowered.to_executorch(), tmp_path / f"{name}.pte")
        assert [each.name for each in written] == [f"{name}.ptd", f"{name}.pte"]
    for name, expected in (("a", 8.0), ("b", 12.0)):
        loaded = runtime.Runtime.get().load_program(tmp_path / f"{name}.pte", data_path=tmp_path / f"{name}.ptd")
        assert loaded.load_method("forward").execute([x])[0].item() == expected
