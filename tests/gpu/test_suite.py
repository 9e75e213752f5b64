"""At least one test of every file of ExecuTorch's operator suite on the local GPU. The whole of it:

python scripts/operators_table.py run --target sm_90 --program PATH/run_session --jobs 14
"""

from __future__ import annotations

import os
import pathlib

import pytest
import torch

from examples.running import gpu_arch
from tests.suite.cases import cases_of, file_names
from tests.suite.run import Task, batches, try_tasks


@pytest.mark.slow
def test_one_case_of_every_file_is_right(run_session: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    keys = [next(iter(cases_of(file, torch.float32))).key for file in file_names()]
    assert len(keys) == 80
    tasks = [Task(tuple(group), "float32", arch, run_session) for group in batches(keys, 6)]
    jobs = max(1, (os.cpu_count() or 2) - 2)
    records = {key: record for _, found in try_tasks(tasks, jobs) for key, record in found.items()}
    assert set(records) == set(keys)
    assert {key: r.error or r.wrong for key, r in records.items() if r.error or r.wrong} == {}
