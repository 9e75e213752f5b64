"""Bytes of weights are read when they are needed, and are those that the program was lowered with."""

from __future__ import annotations

import copy
import hashlib
import io
import pathlib
import pickle
from collections.abc import Iterator

import pytest
import torch
from executorch.exir._serialize._cord import Cord
from executorch.exir._serialize._named_data_store import NamedDataStore
from torch import Tensor

from etcuda.backend.weight_bytes import StoredWeight, WeightBytes
from etcuda.errors import SaveError
from etcuda.passes.graph.recipes import Recipe, Rows, recipe_of, stand_in


def bytes_of(*tensors: Tensor) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


def of_tensor(tensor: Tensor) -> WeightBytes:
    return WeightBytes(tensor.untyped_storage(), tensor.untyped_storage().nbytes())


def joined(*tensors: Tensor) -> tuple[WeightBytes, bytes]:
    whole = torch.cat(tensors)
    return WeightBytes(Rows(tensors), whole.nbytes), bytes_of(whole)


def test_rows_are_the_parts_after_one_another() -> None:
    wide = torch.arange(60, dtype=torch.int16).reshape(6, 10)
    # A slice of rows, a slice of columns, a transposed one: all are views.
    parts = (wide[1:3, :6], wide[:, 2:8], torch.arange(12, dtype=torch.int16).reshape(6, 2).t())
    content, wanted = joined(*parts)
    for size in (1, 7, 1 << 20):
        assert b"".join(map(bytes, content.chunks(size))) == wanted
    assert content.sha256() == hashlib.sha256(wanted).digest()
    assert [content.head(count) for count in (0, 5, 32, 10_000)] == [wanted[:count] for count in (0, 5, 32, 10_000)]
    assert content.read() == wanted


def test_rows_of_rows() -> None:
    a, b, c = (torch.rand(rows, 4) for rows in (1, 2, 3))
    inner = stand_in(Rows((a, b)))
    assert inner.device.type == "meta"
    assert (inner.shape, inner.dtype) == ((3, 4), torch.float32)
    outer = stand_in(Rows((c, inner)))
    found = recipe_of(outer)
    assert found is not None
    # The inner one is kept by what is made of it.
    del inner
    assert WeightBytes(found, outer.nbytes).read() == bytes_of(c, a, b)
    assert recipe_of(a) is None
    assert recipe_of(torch.empty(3, 4, device="meta")) is None


class Counting(Recipe):
    """Counts how often its weight is made."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.times = tensor, 0

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def pieces(self) -> Iterator[Tensor]:
        self.times += 1
        yield self.tensor.clone()


def test_a_weight_is_made_to_be_hashed_and_to_be_written_and_not_else() -> None:
    tensor = torch.rand(5, 3)
    recipe = Counting(tensor)
    content = WeightBytes(recipe, tensor.nbytes)
    assert recipe.times == 0
    first, second = StoredWeight(content, "w"), StoredWeight(content, "w")
    assert recipe.times == 1
    stores = [NamedDataStore(), NamedDataStore()]
    for store, data in zip(stores, (first, second), strict=True):
        store.add_named_data("key", data, 64, None)
    # Of two methods, and once more of another name.
    stores[0].merge_named_data_store(stores[1].get_named_data_store_output())
    stores[0].add_named_data("other", second, 64, None)
    output = stores[0].get_named_data_store_output()
    assert len(output.buffers) == 1
    assert recipe.times == 1
    out = io.BytesIO()
    Cord(output.buffers[0]).write_to_file(out)
    assert out.getvalue() == bytes_of(tensor)
    assert recipe.times == 2


def test_equal_beginnings_are_not_taken_for_equal_bytes() -> None:
    a, b = torch.zeros(100), torch.zeros(100)
    b[99] = 1
    store = NamedDataStore()
    for name, tensor in (("a", a), ("b", b), ("c", a.clone())):
        store.add_named_data(name, StoredWeight(of_tensor(tensor), name), 1, None)
    entries = store.get_named_data_store_output().pte_data
    assert [entries[name].buffer_index for name in "abc"] == [0, 1, 0]


@pytest.mark.parametrize("copied", [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_the_bytes(copied: object) -> None:
    tensor = torch.rand(4)
    found = copied(StoredWeight(of_tensor(tensor), "w"))  # type: ignore[operator]
    assert bytes(Cord(found)) == bytes_of(tensor)
    assert len(found) == tensor.nbytes


def test_weights_that_changed_are_not_written() -> None:
    tensor = torch.rand(4)
    stored = StoredWeight(of_tensor(tensor), "layers.3.weight")
    tensor[2] += 1
    for write in (lambda: stored.write_to_file(io.BytesIO()), stored.to_bytes):
        with pytest.raises(
            SaveError, match=r"bytes of layers\.3\.weight: expected SHA-256 \w+, as when .* got \w+\. .*lower"
        ):
            write()
    tensor[2] -= 1


def test_a_saved_program_is_not_replaced_by_one_of_changed_weights(tmp_path: pathlib.Path) -> None:
    from executorch.exir import to_edge_transform_and_lower

    from etcuda import CudaPartitioner, save_program

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(8, 8)
            self.register_buffer("count", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            out: Tensor = self.fc(x) * self.count
            return out

    model = Model().requires_grad_(False)
    exported = torch.export.export(model, (torch.zeros(1, 8),))
    program = to_edge_transform_and_lower(exported, partitioner=[CudaPartitioner(target="host")]).to_executorch()
    # State is as it was when the program was lowered, whatever runs meanwhile.
    exported.state_dict["count"].add_(5)
    path = tmp_path / "model.pte"
    save_program(program, path)
    before = path.read_bytes()
    # What ExecuTorch writes itself is the same.
    with open(tmp_path / "other.pte", "wb") as file:
        program.write_to_file(file)
    assert (tmp_path / "other.pte").read_bytes() == before == program.buffer
    exported.state_dict["fc.weight"].add_(1)
    with pytest.raises(SaveError, match=r"the bytes of fc\.weight"):
        save_program(program, path)
    assert path.read_bytes() == before
