"""All models of the zoo by name."""

from __future__ import annotations

from examples.models import ModelCase
from examples.zoo import audio, diffusion, quantized, text, vision

ENTRIES = {entry.family: entry for part in (text, vision, audio, diffusion, quantized) for entry in part.ENTRIES}
ZOO_CASES: dict[str, ModelCase] = {case.name: case for entry in ENTRIES.values() for case in entry.cases()}
