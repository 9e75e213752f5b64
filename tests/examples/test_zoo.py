"""Models of the zoo, one of each kind, are one partition for sm_90."""

from __future__ import annotations

import pytest

from etcuda import partition_report
from examples.zoo.registry import ENTRIES, ZOO_CASES

# The smallest of their kinds; scripts/models_table.py runs all.
SAMPLE = ("gpt2", "wav2vec2", "vit", "convnext", "unet")


@pytest.mark.parametrize("family", SAMPLE)
def test_a_model_is_one_partition(family: str) -> None:
    case = ZOO_CASES[f"{family}-fp32"]
    report = partition_report(case.export(case.model())["forward"], "sm_90")
    assert not report.refusals, str(report)
    assert len(report.partitions) == 1


def test_there_are_twenty_models_and_every_kind() -> None:
    kinds = {entry.kind for entry in ENTRIES.values()}
    assert len(ENTRIES) >= 20
    assert kinds > {"encoder", "decoder", "encoder-decoder", "MoE decoder", "state space", "diffusion", "int8 by PT2E"}
