"""Finds words in the code that the project has given up for the field's own; part of ``make check``.

The reader has read CUTLASS, FlashInfer and Triton. A name of ours for what has a name there costs that reader time.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = (
    "etcuda",
    "partitioner",
    "passes",
    "kernels",
    "backend",
    "llm",
    "serve",
    "runtime",
    "benchmarks",
    "examples",
    "scripts",
    "tests",
)
KERNELS = ("kernels", "passes", "benchmarks", "tests/kernels", "tests/passes", "tests/gpu")
DEVICE = ("kernels", "tests/kernels/cuda")
_SUFFIXES = frozenset({".py", ".cpp", ".h", ".cu", ".cuh", ".md", ".txt", ".toml"})
_NOT_OURS = re.compile(r"third_party|generated|__pycache__|benchmarks/results|notes\.md|check_words\.py|sonnets")


@dataclasses.dataclass(frozen=True)
class Retired:
    """A word that is not used any more.

    Attributes:
        pattern: a regular expression; upper and lower case matter.
        better: the word to use.
        folders: where it is looked for.
        suffixes: of the files; ``None`` for all kinds of code.
    """

    pattern: str
    better: str
    folders: Sequence[str] = CODE
    suffixes: frozenset[str] | None = None


_DEVICE_CODE = frozenset({".cu", ".cuh"})
_PYTHON = frozenset({".py"})

RETIRED = (
    Retired(r"\b(can_overlap|\w+_overlapped|OVERLAP|let_next_start)\b|\boverlap: int|\boverlap=", "pdl"),
    Retired(
        r"\b\w*_rounded\b|\bround_blocks\b|\bRounding[A-Z]\w*|\brounding_(?!mode\b)\w+", "quantize, quantized", KERNELS
    ),
    Retired(r"\b[Ss]tretch(es)?\b", "k segment", KERNELS),
    Retired(r"\b([Tt]ickets?|TICKETS)\b", "semaphore"),
    Retired(r"\b[Mm]eet(s|ings?)?\b", "fixup, or say what waits for what", KERNELS),
    Retired(
        r"\b(Eight|Place|Turn|Task)\b", "PartialFragment, Epilogue, PipelineState, SharedTile", DEVICE, _DEVICE_CODE
    ),
    Retired(r"\b(aside|put_aside|add_aside|there\(\)|see_words)\b", "spill, is_ready, poll", DEVICE, _DEVICE_CODE),
    Retired(r"\b(near|far)(?=[;\[]| =)|\bfrom_far\b", "smem, gmem", DEVICE, _DEVICE_CODE),
    Retired(r"\b(order|gate_order)_activation\b|\bgate_order\b|\bmatmul_ordered\b", "reorder, reordered", KERNELS),
    Retired(r"\b[Pp]ut(s|ting)? (\w+ )?in order\b|\bin a tiled order\b", "reorder", KERNELS),
    Retired(r"\bwarpgroup_(results|meeting|work|copies|weights|layout)\b", "the file's new name"),
    Retired(r"\bprograms? (that|who) shares?\b|\bprograms\b", "CTAs", DEVICE, _DEVICE_CODE),
    Retired(r"(?<![.\w])form\b(?!\w)(?= ?[=:.,)])", "format", ("kernels", "passes"), _PYTHON),
    Retired(r"(?<![.\w])kind: type\[", "format_type", ("kernels", "passes"), _PYTHON),
    Retired(
        r"\bquantized_reference\b|\bpack_int4\b|\bround_one_row\b|\bfuse_rounding\b|\broute_quantized\b", "see passes"
    ),
    Retired(r"\bactivation: \"(int8|exact)\"|\bactivation=\"(int8|exact)\"", "activation_dtype"),
    Retired(r"\b(who|whom|whose turn)\b", "name the thread, the block or the host", ("kernels",)),
)


def problems(root: pathlib.Path = ROOT, retired: Sequence[Retired] = RETIRED) -> list[str]:
    """One line for each place where a retired word stands: ``file:line: word; say ...``."""
    found = []
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        rules = [
            each for each in retired
            if any(name.startswith(f"{folder}/") for folder in each.folders)
            and (each.suffixes is None or path.suffix in each.suffixes)
        ]  # fmt: skip
        if not rules:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            for each in rules:
                if match := re.search(each.pattern, line):
                    found.append(f"{name}:{number}: {match[0]!r} is not used any more; say {each.better}.")
    return found


def _files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for folder in CODE:
        for path in sorted((root / folder).rglob("*")):
            inside = path.relative_to(root)
            linked = any((root / parent).is_symlink() for parent in inside.parents)
            if path.is_file() and path.suffix in _SUFFIXES and not linked and not _NOT_OURS.search(inside.as_posix()):
                yield path


def main() -> int:
    """Prints the places; returns 1 if there are any."""
    found = problems()
    for line in found:
        print(line, file=sys.stderr)
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
