"""docs/operators.md from the records."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable, Mapping

from tests.suite.records import CaseRecord, Records

INTRO = """# Operators

Every operator test of ExecuTorch's backend suite (`executorch.backends.test.suite`, in the wheel), tried with
`CudaPartitioner`. `scripts/operators_table.py` writes this page from `docs/operators/*.json`.

- A test lowers one model or several; each is a case. Several cases share one export, which changes nothing for a case:
  its calls are claimed or left by the same rules, and it is compared by itself. Tests that the suite skips (NaNs and
  infinities, activations in place) are tried too.
- Right: delegated whole, run, and every output as near to PyTorch's as fp32 1e-5, fp16 2e-3, bf16 1.6e-2, fp64 1e-12 of
  the output's largest magnitude (to the same dtype's or to fp64's), with the same NaNs and infinities; integers are
  equal.
- Moves only: the test does no arithmetic (a view, a copy). Alone such a graph is left to ExecuTorch, for a call of the
  delegate would gain nothing. It was tried with a negation of its results, and that is what is right.
- Exported: compiled for the target and not run. An empty cell has not been tried.
"""

# Why a case may be other than PyTorch's result.
_OPEN = dict.fromkeys(
    ("index_put::test_index_put_in_place_two_indices", "index_put::test_index_put_two_indices"),
    "two values go to one position without accumulation, and PyTorch leaves open which one stays",
)

# How good a verdict is, best first.
_ORDER = ("right", "exported", "in part", "wrong", "run failed", "export failed")


def cell(records: Iterable[CaseRecord | None]) -> str:
    """One test's verdict: that of all its cases, or how many have which."""
    known = [each for each in records if each is not None]
    if not known:
        return ""
    counts = collections.Counter(each.verdict for each in known)
    words = [f"{'' if len(counts) == 1 else f'{counts[v]} '}{v}" for v in _ORDER if v in counts]
    moves = all(each.moves_only for each in known)
    return ", ".join(words) + (" (moves only)" if moves else "")


def by_test(columns: Mapping[str, Records]) -> list[str]:
    """Lines of the table of tests: one row per test, one column per target."""
    tests: dict[tuple[str, str], set[str]] = {}
    for records in columns.values():
        for key in records.cases:
            file, rest = key.split("::", 1)
            tests.setdefault((file, rest.rsplit("#", 1)[0]), set()).add(key)
    lines = [f"| file | test | cases | {' | '.join(columns)} |", "|" + "---|" * (3 + len(columns))]
    for (file, test), keys in sorted(tests.items()):
        cells = [cell(records.cases.get(key) for key in sorted(keys)) for records in columns.values()]
        lines.append(f"| {file} | `{test}` | {len(keys)} | {' | '.join(cells)} |")
    return lines


def by_dtype(columns: Mapping[str, Records]) -> list[str]:
    """Lines of the table of dtypes: cases claimed whole, compiled and right, one number where they are all."""
    files = sorted({key.split("::")[0] for records in columns.values() for key in records.cases})
    lines = [f"| file | {' | '.join(columns)} |", "|" + "---|" * (1 + len(columns))]
    for file in files:
        cells = []
        for records in columns.values():
            known = [r for key, r in records.cases.items() if key.split("::")[0] == file]
            claimed = sum(not r.left for r in known)
            compiled = sum(r.exported and not r.left for r in known)
            right = sum(r.verdict == "right" for r in known)
            same = claimed == compiled == right == len(known)
            cells.append("" if not known else str(right) if same else f"{claimed}/{compiled}/{right} of {len(known)}")
        lines.append(f"| {file} | {' | '.join(cells)} |")
    return lines


def reasons(columns: Mapping[str, Records]) -> list[str]:
    """Lines that name what is not right, by what it is."""
    lines = []
    for name, records in columns.items():
        found: dict[str, list[str]] = {}
        for key, record in records.cases.items():
            if record.verdict in ("in part", "wrong", "run failed", "export failed"):
                test = key.rsplit("#", 1)[0]
                what = record.error or record.wrong or f"left to ExecuTorch: {', '.join(sorted(set(record.left)))}"
                what += f" ({_OPEN[test]})" if test in _OPEN else ""
                found.setdefault(f"{record.verdict}: {what}", []).append(test)
        lines += [f"- {name}: {what}: {_listed(keys)}" for what, keys in sorted(found.items())]
    return lines or ["No case that was tried."]


def skipped(records: Records) -> list[str]:
    """Lines that name the tests that were not tried."""
    found: dict[str, list[str]] = {}
    for key, reason in records.skipped.items():
        found.setdefault(reason, []).append(key)
    return [f"- {reason}: {_listed(keys)}" for reason, keys in sorted(found.items())]


def untried(columns: Mapping[str, Records], keys: Iterable[str]) -> list[str]:
    """Lines that count, for each column, the cases of each file that have no record."""
    wanted, lines = list(keys), []
    for name, records in columns.items():
        counts = collections.Counter(key.split("::")[0] for key in wanted if key not in records.cases)
        if counts:
            words = ", ".join(f"{file} {number}" for file, number in sorted(counts.items()))
            lines.append(f"- {name}: no record yet of {sum(counts.values())} cases: {words}")
    return lines


def _listed(keys: list[str]) -> str:
    unique = sorted(set(keys))
    return ", ".join(f"`{key}`" for key in unique)


def summary(columns: Mapping[str, Records]) -> list[str]:
    """One line per column."""
    lines = []
    for name, records in columns.items():
        counts = collections.Counter(r.verdict for r in records.cases.values())
        tests = {key.rsplit("#", 1)[0] for key in records.cases}
        words = ", ".join(f"{counts[v]} {v}" for v in _ORDER if v in counts)
        facts = ", ".join([f"torch {records.facts.get('torch', '?')}", *filter(None, [records.facts.get("device")])])
        lines.append(f"- {name} ({facts}): {len(records.cases)} cases of {len(tests)} tests: {words}")
    return lines


def make_page(
    targets: Mapping[str, Records],
    dtypes: Mapping[str, Records],
    models: Mapping[str, Records],
    keys: Iterable[str] = (),
) -> str:
    """The whole page.

    Args:
        targets: the columns of the table of tests, fp32.
        dtypes: the columns of the table of dtypes; those on a GPU are named by it.
        models: the columns of the table of the suite's models.
        keys: every case in fp32.
    """
    named = {f"models, {name}": records for name, records in models.items()}
    every = {**targets, **named, **{name: records for name, records in dtypes.items() if name != "float32"}}
    parts = [
        INTRO,
        "\n".join(summary(every)),
        "## What is not right",
        "\n".join([*reasons(every), *untried(targets, keys)]),
        "## By dtype, on the host",
        "Cases claimed whole / compiled / right; one number where they are the same. Empty: PyTorch does not take it. "
        "Columns of sm_90 are runs on a GPU of the first case of each file.",
        "\n".join(by_dtype(dtypes)),
        "## By test, fp32",
        "\n".join(by_test(targets)),
        "## Models of the suite, fp32",
        "\n".join(by_test(models)),
        "## Not tried",
        "\n".join(skipped(next(iter(targets.values())))),
    ]
    return "\n\n".join(parts) + "\n"


# Stems of the files, and the titles of their columns.
_TARGETS = {"host": "host", "sm_90": "sm_90", "sm_90-run": "sm_90, run"}


def read_columns(folder: pathlib.Path) -> tuple[dict[str, Records], dict[str, Records], dict[str, Records]]:
    """The columns of the tables of tests, dtypes and models, from the files that there are."""
    targets, models = (
        {title: Records(path) for stem, title in _TARGETS.items() if (path := folder / f"{stem}-{kind}.json").is_file()}
        for kind in ("float32", "models")
    )
    dtypes = {
        path.stem.removeprefix("host-"): Records(path)
        for path in sorted(folder.glob("host-*.json"))
        if path.stem != "host-models"
    }
    for path in sorted(folder.glob("sm_90-run-*.json")):
        dtype = path.stem.removeprefix("sm_90-run-")
        if dtype not in ("float32", "models"):
            dtypes[f"sm_90, {dtype}"] = Records(path)
    return targets, dict(sorted(dtypes.items(), key=lambda item: (item[0] != "float32", item[0]))), models
