"""The container that all images share is taken out of the wrapper, compiled once and kept."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import pytest

from etcuda.backend.image import find_compiler
from etcuda.backend.inductor.container import _interface, split_container
from etcuda.backend.kept_objects import MOST_KEPT, KeptObjects
from etcuda.backend.precompiled import identity_of_gcc

INTERFACE = _interface()
BEFORE = "\n#include <torch/csrc/inductor/aoti_include/cpu.h>\n"
MODEL = "\nnamespace torch::aot_inductor { int of_the_model = 3; }\n"

needs_gcc = pytest.mark.skipif(identity_of_gcc(find_compiler()) is None, reason="objects are kept for GCC alone")


def test_nothing_of_the_model_stands_in_the_container() -> None:
    model, container = split_container(BEFORE + INTERFACE + MODEL)
    assert container is not None
    assert container.startswith(BEFORE + INTERFACE)
    assert "of_the_model" not in container
    assert model.startswith(BEFORE)
    assert model.endswith(MODEL)
    assert "AOTInductorModelContainerCreate" not in model
    assert split_container(BEFORE + INTERFACE + "other")[1] == container


@pytest.mark.parametrize(
    "wrapper",
    [
        BEFORE + MODEL,
        BEFORE + "int before = 1;\n" + INTERFACE + MODEL,
        BEFORE + INTERFACE.replace("AOTInductorModelContainerCreate", "Another") + MODEL,
        "",
    ],
    ids=["no interface", "something before it", "another interface", "empty"],
)
def test_a_wrapper_that_is_made_otherwise_stays_whole(wrapper: str) -> None:
    assert split_container(wrapper) == (wrapper, None)


class Keeper:
    """Compiles ``source`` as an image does; says whether the object was there."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.build = folder / "build"
        self.build.mkdir()
        self.header = self.build / "given.h"
        self.header.write_text("#define GIVEN 1\n")

    def __call__(self, source: str = "int number() { return 1; }\n", flags: Sequence[str] = ("-O1",)) -> bool:
        kept = KeptObjects(identity_of_gcc(find_compiler()), self.folder / "objects")
        made, needed = self.build / "made.o", self.build / "made.d"
        made.unlink(missing_ok=True)
        if kept.fetch(source, flags, made):
            assert made.read_bytes() == b"object of " + source.encode()
            return True
        made.write_bytes(b"object of " + source.encode())
        needed.write_text(f"made.o: {self.build / 'made.cpp'} {self.header}\n")
        kept.keep(source, flags, made, needed)
        return False


@pytest.fixture
def keeper(tmp_path: pathlib.Path) -> Keeper:
    return Keeper(tmp_path)


@needs_gcc
def test_it_is_kept_by_source_and_flags(keeper: Keeper) -> None:
    assert [keeper(), keeper()] == [False, True]
    assert [keeper("int other;\n"), keeper("int other;\n"), keeper()] == [False, True, True]
    assert [keeper(flags=("-O2",)), keeper(flags=("-O2",)), keeper()] == [False, True, True]


@needs_gcc
@pytest.mark.parametrize("damage", ["object", "record", "no record", "header", "no header", "cut"])
def test_what_is_not_sound_is_made_again(keeper: Keeper, damage: str) -> None:
    keeper()
    (kept,) = (keeper.folder / "objects").glob("*.o")
    record = kept.with_suffix(".json")
    match damage:
        case "object":
            data = bytearray(kept.read_bytes())
            data[3] ^= 1
            kept.write_bytes(data)
        case "cut":
            kept.write_bytes(b"")
        case "record":
            record.write_text(json.dumps({"sha256": None}))
        case "no record":
            record.unlink()
        case "header":
            keeper.header.write_text("#define GIVEN 2\n")
        case "no header":
            moved = keeper.header.with_suffix(".hpp")
            keeper.header.rename(moved)
            keeper.header = moved
    assert [keeper(), keeper()] == [False, True]


@needs_gcc
def test_few_are_kept(keeper: Keeper) -> None:
    for number in range(MOST_KEPT + 3):
        keeper(f"int number{number};\n")
    objects = keeper.folder / "objects"
    assert len(list(objects.glob("*.o"))) == len(list(objects.glob("*.json"))) == MOST_KEPT


def test_a_folder_that_cannot_be_written_keeps_nothing(keeper: Keeper) -> None:
    (keeper.folder / "objects").write_text("a file stands here")
    assert [keeper(), keeper()] == [False, False]
