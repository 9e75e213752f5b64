"""Exports the encoder for a batch of the example's sentences.

python -m examples.sentences.export out/sentences-host.pte host
"""

from __future__ import annotations

import pathlib
import sys

import torch

from examples.export import export_program
from examples.sentences.model import SentenceEncoder, extract, tokenize


def main(path: str, target: str) -> None:
    program = pathlib.Path(path)
    checkpoint = extract(program.parent)
    inputs = tokenize(checkpoint)
    export_program({"forward": torch.export.export(SentenceEncoder(checkpoint).eval(), inputs)}, target, program)


if __name__ == "__main__":
    main(*sys.argv[1:3])
