"""Exports ResNet-18 for the example's image.

python -m examples.resnet.export out/resnet18-host.pte host
"""

from __future__ import annotations

import pathlib
import sys

import torch

from examples.export import export_program
from examples.resnet.image import load_image
from examples.resnet.model import seeded_resnet18


def main(path: str, target: str) -> None:
    exported = torch.export.export(seeded_resnet18(), (load_image(),))
    export_program({"forward": exported}, target, pathlib.Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:3])
