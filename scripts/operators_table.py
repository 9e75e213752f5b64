"""Makes docs/operators.md: tries every operator test of ExecuTorch's suite, and writes the table from the results.

    python scripts/operators_table.py run --target host                  # exports, runs, compares; goes on where it was
    python scripts/operators_table.py run --target host --dtype float16
    python scripts/operators_table.py run --target sm_90                 # exports; no GPU
    python scripts/operators_table.py run --target sm_90 --program PATH  # exports and runs on a GPU machine
    python scripts/operators_table.py run --target host --models         # the suite's models
    python scripts/operators_table.py render                             # docs/operators.md from docs/operators/*.json

``--program`` is the built examples/cpp/run_session; with it no release of torch is too old. ``--again`` forgets the
cases that were not right. ``--jobs`` and ``--seconds`` spread a run over processes and bound it.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

RESULTS = ROOT / "docs" / "operators"


def run(arguments: argparse.Namespace) -> int:
    """Tries the cases without a record; 1 if one of them is wrong or failed."""
    import torch

    from tests.suite.cases import MODEL_FILES, cases_of, file_names
    from tests.suite.records import Records
    from tests.suite.run import Task, run_all

    until = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    torch.set_num_threads(1)
    name = "models" if arguments.models else arguments.dtype
    ran = arguments.target != "host" and arguments.program is not None
    records = Records(arguments.results / f"{arguments.target}{'-run' if ran else ''}-{name}.json")
    if ran:
        records.facts["device"] = torch.cuda.get_device_name()
    if arguments.again:
        records.cases = {k: v for k, v in records.cases.items() if v.verdict in ("right", "exported")}
        records.stubborn = []
    keys: list[str] = []
    # The longest last, or first where others go on beside it.
    every = sorted(file_names(), key=lambda name: (name == "lstm") == (arguments.jobs == 1))
    for file in arguments.file or (MODEL_FILES if arguments.models else every):
        of_file = [case.key for case in cases_of(file, getattr(torch, arguments.dtype), records.skipped)]
        keys += of_file[:1] if arguments.first else of_file
    task = Task((), arguments.dtype, arguments.target, arguments.program)
    run_all(keys, task, records, arguments.jobs, arguments.size, until)
    tried = [records.cases[key] for key in keys if key in records.cases]
    bad = [record for record in tried if record.error or record.wrong]
    print(f"{arguments.target} {arguments.dtype}: {len(tried)} of {len(keys)} cases, {len(bad)} wrong or failed")
    return min(len(bad), 1)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("run", "render"))
    parser.add_argument("--target", default="host")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--file", action="append", help="a file of the suite without test_; may be repeated")
    parser.add_argument("--program", type=pathlib.Path, help="run_session, to run the programs")
    parser.add_argument("--again", action="store_true", help="try again what was not right")
    parser.add_argument("--first", action="store_true", help="one case of every file")
    parser.add_argument("--models", action="store_true", help="the suite's models, in fp32")
    parser.add_argument("--jobs", type=int, default=1, help="batches at a time, in processes of their own")
    parser.add_argument("--seconds", type=float, help="end after that time; a later run goes on")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--size", type=int, default=24, help="cases of a batch")
    arguments = parser.parse_args()
    if arguments.step == "run":
        return run(arguments)
    import torch

    from tests.suite.cases import cases_of, file_names
    from tests.suite.page import make_page, read_columns

    page = RESULTS.with_suffix(".md")
    keys = [case.key for file in file_names() for case in cases_of(file, torch.float32)]
    page.write_text(make_page(*read_columns(RESULTS), keys))
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
