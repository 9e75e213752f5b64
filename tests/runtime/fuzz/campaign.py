"""Counts what becomes of mutated programs, in the runner's code or in the stock Python runtime.

    python -m tests.runtime.fuzz.campaign --runner build/.../etcuda_fuzz_programs --count 100000
    python -m tests.runtime.fuzz.campaign --python build/.../libetcuda_fuzz_crash_report.so --count 100000

Exit status 1: a crash in etcuda's code, a call that hung, or another result without an error where bytes changed that
etcuda answers for.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

from . import in_python
from .mutations import Mutant, Seed, mutants
from .programs import write_programs


@dataclasses.dataclass
class Verdict:
    """How many mutants of each kind had which outcome, and those that must not be."""

    counts: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)
    crashes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, number: int, mutant: Mutant, line: str) -> None:
        """Counts the outcome of a mutant."""
        outcome = classify(line)
        self.counts[mutant.kind, outcome] += 1
        if outcome == "crash elsewhere":
            self.crashes[line] += 1
        unnoticed = outcome == "changed" and not mutant.may_change
        if unnoticed or outcome in ("crash of etcuda", "hung"):
            self.faults.append(f"mutant {number}, {mutant.kind}: {line}")

    def table(self) -> str:
        """Kinds by outcomes, as Markdown."""
        kinds = sorted({kind for kind, _ in self.counts})
        found = sorted({outcome for _, outcome in self.counts})
        lines = ["| mutation | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
        lines += [f"| {kind} | " + " | ".join(str(self.counts[kind, each]) for each in found) + " |" for kind in kinds]
        totals = [str(sum(n for (_, each), n in self.counts.items() if each == outcome)) for outcome in found]
        return "\n".join([*lines, "| all | " + " | ".join(totals) + " |"])


def classify(line: str) -> str:
    """The outcome that a line of ``fuzz_programs`` or of ``in_python`` stands for."""
    word, _, rest = line.partition(" ")
    if word in ("load", "execute"):
        return "error"
    if word == "same":
        return "same result"
    if word == "crash":
        return "crash of etcuda" if rest.split()[1] == "ours" else "crash elsewhere"
    # Without a report nothing says whose it was.
    return {"changed": "changed", "hung": "hung"}.get(word, "crash of etcuda")


def in_runner(
    runner: pathlib.Path, seeds: Sequence[Seed], cases: Sequence[Mutant], folder: pathlib.Path
) -> Iterator[str]:
    """The outcomes of mutants in ``fuzz_programs``."""
    programs = []
    for seed in seeds:
        paths = [folder / f"{seed.name}.pte", *([folder / f"{seed.name}.ptd"] if seed.ptd else [])]
        for path, data in zip(paths, (seed.pte, seed.ptd), strict=False):
            path.write_bytes(data)
        programs.append(",".join(map(str, paths)))
    with subprocess.Popen(
        [runner, *programs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def feed() -> None:
            with stdin:
                for mutant in cases:
                    stdin.write(mutant.pack())

        thread = threading.Thread(target=feed)
        thread.start()
        for line in stdout:
            yield line.decode(errors="replace").rstrip("\n")
        thread.join()
    if process.returncode:
        raise RuntimeError(f"{runner} ended with {process.returncode}; expected it to outlive every mutant.")


def judge(cases: Sequence[Mutant], lines: Iterator[str]) -> Verdict:
    """Counts outcomes."""
    verdict = Verdict()
    for number, (mutant, line) in enumerate(zip(cases, lines, strict=True)):
        verdict.add(number, mutant, line)
    return verdict


def main() -> int:
    """Runs a campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runner", type=pathlib.Path, help="the built etcuda_fuzz_programs")
    parser.add_argument(
        "--python", type=pathlib.Path, help="the stock Python runtime, with libetcuda_fuzz_crash_report.so"
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--programs", type=pathlib.Path, help="folder to export to, or with the programs of before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = options.programs or pathlib.Path(folder)
        place.mkdir(exist_ok=True)
        found = sorted(place.glob("*.pte"))
        seeds = [
            Seed.read(path, data if (data := path.with_suffix(".ptd")).exists() else None) for path in found
        ] or write_programs(place)
        verdict = Verdict()
        for start in range(0, options.count, 5000):
            cases = list(mutants(seeds, min(5000, options.count - start), options.seed * 1_000_003 + start))
            lines = (
                in_python.outcomes(seeds, cases, options.python)
                if options.python
                else in_runner(options.runner, seeds, cases, pathlib.Path(folder))
            )
            part = judge(cases, lines)
            verdict.counts += part.counts
            verdict.crashes += part.crashes
            verdict.faults += [f"from {start}: {each}" for each in part.faults]
            print(f"{start + len(cases)} done, {len(verdict.faults)} faults", file=sys.stderr, flush=True)
    print(verdict.table())
    for line, count in verdict.crashes.most_common(20):
        print(count, line)
    print("\n".join(verdict.faults[:50]))
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
