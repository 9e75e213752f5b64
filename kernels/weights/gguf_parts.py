"""GGUF models in several files: which files, and whether they belong together.

llama.cpp numbers them: ``model-00001-of-00003.gguf`` holds ``split.no`` 0, ``split.count`` 3 and
``split.tensors.count``, the number of tensors in all of them. The header's other fields stand in the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from etcuda.errors import GgufError

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_LISTED = 5

Field = Callable[[str], Any]


def other_parts(path: str, field: Field) -> list[str]:
    """Paths of the second and later files of a model whose first is ``path``; none if it is the only one.

    Args:
        path: of the first file.
        field: a value of its header by key, or ``None``.

    Raises:
        GgufError: ``path`` is another part, its name does not say which, or a part is missing.
    """
    number, count = _numbers(path, field)
    if count == 1:
        return []
    folder, name = os.path.split(path)
    parsed = _NAME.fullmatch(name)
    if parsed is None or int(parsed[3]) != count or int(parsed[2]) != number + 1:
        raise GgufError(
            f"{path}: expected the name of part {number + 1} of {count}, such as "
            f"model-{number + 1:05}-of-{count:05}.gguf, got {name}. Give the files the names that they had."
        )
    names = [f"{parsed[1]}-{each + 1:05}-of-{count:05}{parsed[4]}" for each in range(count)]
    paths = [os.path.join(folder, each) for each in names]
    if number != 0:
        raise GgufError(f"{path}: expected the first part of the model, got part {number + 1}. Pass {paths[0]}.")
    missing = [each for each in paths if not os.path.isfile(each)]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise GgufError(
            f"{path}: expected all {count} parts of the model beside it, got none at "
            f"{', '.join(missing[:_LISTED])}{more}. Download the missing ones."
        )
    return paths[1:]


def check_part(path: str, field: Field, number: int, count: int) -> None:
    """Checks that a file is part ``number``, from 0, of ``count``.

    Raises:
        GgufError: its header says something else.
    """
    got = _numbers(path, field)
    if got != (number, count):
        raise GgufError(
            f"{path}: expected part {number + 1} of {count}, as its name says, got part {got[0] + 1} of {got[1]}. "
            "It belongs to another model, or the files were renamed: download it again."
        )


def check_total(path: str, field: Field, found: int) -> None:
    """Checks the number of tensors in all parts against the header of the first.

    Raises:
        GgufError: they differ.
    """
    stated = field("split.tensors.count")
    if stated is not None and stated != found:
        raise GgufError(
            f"{path}: expected {stated} tensors in all parts, got {found}. "
            "A part is of another model: download all again."
        )


def _numbers(path: str, field: Field) -> tuple[int, int]:
    """Number of a part, from 0, and how many there are."""
    number, count = field("split.no"), field("split.count")
    if number is None and count is None:
        return 0, 1
    # A count of 0 is what a tool writes that does not split.
    count = 1 if count in (None, 0) else count
    number = 0 if number is None else number
    if not (isinstance(number, int) and isinstance(count, int) and 0 <= number < count <= 99999):
        raise GgufError(
            f"{path}: split.no and split.count: expected a part and a number of parts, got {number!r} and {count!r}. "
            "The file is damaged."
        )
    return number, count
