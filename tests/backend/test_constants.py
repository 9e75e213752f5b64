from __future__ import annotations

import hashlib
import threading

import pytest
import torch

from etcuda.backend.constants import ConstantTable, collect_constants, hash_weights, store_what_is_used_in_part
from etcuda.backend.weight_bytes import WeightBytes
from etcuda.backend.worker.job import tied_constants
from etcuda.errors import UnsupportedGraphError


class Stateful(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
        self.register_buffer("cache", torch.zeros(2, 4))
        self.register_buffer("counter", torch.ones(1))
        self.register_buffer("zeros_read_only", torch.zeros(4))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache.add_(x)
        self.counter.add_(1)
        self.scratch.mul_(2)
        return x @ self.weight.T + self.counter + self.zeros_read_only[0] + torch.tensor([5.0])


def collect(module: torch.nn.Module, *args: torch.Tensor) -> ConstantTable:
    return collect_constants(torch.export.export(module, args).run_decompositions())


def test_only_mutable_zero_content_is_free() -> None:
    table = collect(Stateful(), torch.zeros(2, 4))
    by_name = {fqn: table.storages[entry.storage_index] for fqn, entry in table.constants.items()}
    assert by_name["cache"].is_mutable
    assert by_name["cache"].sha256 is None
    assert by_name["cache"].state_name == "cache"
    assert by_name["scratch"].is_mutable
    assert by_name["scratch"].sha256 is None
    # State that starts with a value keeps it, and zeros that nobody writes are an ordinary weight.
    assert by_name["counter"].is_mutable
    assert by_name["counter"].content.read() == torch.ones(1).numpy().tobytes()
    assert not by_name["zeros_read_only"].is_mutable
    assert by_name["zeros_read_only"].sha256 == hashlib.sha256(bytes(16)).digest()
    assert by_name["weight"].content.read() == torch.arange(12.0).numpy().tobytes()
    lifted = [fqn for fqn in table.constants if "lifted" in fqn or "tensor" in fqn]
    assert len(lifted) == 1
    assert by_name[lifted[0]].content.read() == torch.tensor([5.0]).numpy().tobytes()


def test_weights_can_be_hashed_later() -> None:
    program = torch.export.export(Stateful(), (torch.zeros(2, 4),)).run_decompositions()
    whole, later = collect_constants(program), collect_constants(program, weights=False)
    digests = {fqn: later.storages[entry.storage_index].sha256 for fqn, entry in later.constants.items()}
    # State is compared between methods before anything is compiled.
    assert digests["weight"] is None
    assert digests["counter"] == hashlib.sha256(torch.ones(1).numpy().tobytes()).digest()
    stop = threading.Event()
    stop.set()
    hash_weights([later], stop)
    assert later.storages[later.constants["weight"].storage_index].sha256 is None
    hash_weights([later])
    assert [entry.sha256 for entry in later.storages] == [entry.sha256 for entry in whole.storages]


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        base = torch.randn(6, 4)
        self.a = torch.nn.Parameter(base)
        self.b = torch.nn.Parameter(base)
        self.register_buffer("tail", base[4:])
        self.register_buffer("transposed", base.t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a.T @ self.b @ self.transposed @ self.tail.repeat(3, 1)


def test_views_of_the_same_bytes_share_a_storage() -> None:
    table = collect(Tied(), torch.randn(2, 4))
    assert len(table.storages) == 1
    assert table.storages[0].nbytes == 6 * 4 * 4
    tail = table.constants["tail"]
    assert (tail.sizes, tail.strides, tail.storage_offset) == ((2, 4), (4, 1), 16)
    assert table.constants["transposed"].strides == (1, 4)
    tied = tied_constants(table)
    assert len(tied) + len({name for name in table.constants if name not in tied}) == len(table.constants)
    assert all(table.constants[a].strides == table.constants[b].strides for a, b in tied.items())


def test_large_content_is_hashed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = WeightBytes.chunks
    monkeypatch.setattr(WeightBytes, "chunks", lambda self: chunks(self, 7))
    linear = torch.nn.Linear(3, 5, bias=False)
    table = collect(linear, torch.randn(1, 3))
    (storage,) = table.storages
    assert storage.sha256 == hashlib.sha256(linear.weight.detach().numpy().tobytes()).digest()

    late = torch.zeros(100)
    late[99] = 1

    class LateOne(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", late)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state.add_(x)
            return x

    (state,) = collect(LateOne(), torch.zeros(100)).storages
    assert state.sha256 is not None


def test_empty_tensor() -> None:
    class Empty(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("nothing", torch.zeros(0, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, self.nothing])

    (storage,) = collect(Empty(), torch.zeros(1, 4)).storages
    assert storage.nbytes == 0
    assert storage.content.read() == b""


def test_zeros_that_are_used_in_part_are_stored() -> None:
    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.zeros(4, 6)
            self.register_buffer("rows", whole[1:])
            self.register_buffer("column", torch.zeros(4, 6)[:, 2])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.rows.add_(x)
            self.column.add_(1)
            return self.rows + self.column.sum()

    table = collect(Part(), torch.zeros(3, 6))
    rows, column = (table.storages[table.constants[name].storage_index] for name in ("rows", "column"))
    assert (table.constants["rows"].end, table.constants["column"].end) == (96, 84)
    assert (rows.sha256, column.sha256) == (None, None)
    store_what_is_used_in_part(table, ["rows", "column"])
    assert (rows.sha256, column.sha256) == (None, hashlib.sha256(bytes(96)).digest())


def test_meta_weights_are_refused_by_name() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(3, 5)
    program = torch.export.export(module, (torch.randn(1, 3, device="meta"),))
    with pytest.raises(UnsupportedGraphError, match=r"'weight'.*meta device.*Load its weights"):
        collect_constants(program)


def test_sparse_weights_are_refused_by_name() -> None:
    program = torch.export.export(torch.nn.Linear(3, 5, bias=False), (torch.randn(1, 3),))
    program.state_dict["weight"] = torch.eye(5, 3).to_sparse()
    with pytest.raises(UnsupportedGraphError, match=r"'weight'.*plain dense.*sparse"):
        collect_constants(program)
