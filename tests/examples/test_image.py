from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch

from examples.resnet.image import IMAGE, draw, load_image, read_ppm, write_ppm
from examples.resnet.model import seeded_resnet18


def test_image_in_the_repository_is_the_drawn_one() -> None:
    assert IMAGE.stat().st_size < 100_000
    assert np.array_equal(read_ppm(IMAGE), draw())


def test_round_trip_of_odd_sizes_and_whitespace_bytes(tmp_path: pathlib.Path) -> None:
    pixels = np.full((3, 5, 3), ord(" "), np.uint8)
    write_ppm(tmp_path / "x.ppm", pixels)
    assert np.array_equal(read_ppm(tmp_path / "x.ppm"), pixels)


@pytest.mark.parametrize("data", [b"", b"P5\n1 1\n255\n\0", b"P6\n2 2\n255\nabc", b"P6\n1 1\n65535\nabcdef"])
def test_other_files_are_refused(tmp_path: pathlib.Path, data: bytes) -> None:
    (tmp_path / "x.ppm").write_bytes(data)
    with pytest.raises(ValueError, match="expected"):
        read_ppm(tmp_path / "x.ppm")


def test_network_is_the_same_each_time_and_leaves_the_global_seed_alone() -> None:
    state = torch.get_rng_state()
    first, second = seeded_resnet18(), seeded_resnet18()
    assert torch.equal(torch.get_rng_state(), state)
    image = load_image()
    assert image.shape == (1, 3, 224, 224)
    assert torch.equal(first(image), second(image))
    assert sum(p.numel() for p in first.parameters()) == 11_689_512
