"""The example image: drawn by arithmetic, kept as a PPM file, read back without an image library.

Run ``python examples/resnet/image.py`` to draw it again.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from torch.nn import functional as F

IMAGE = pathlib.Path(__file__).parent / "hills.ppm"
# Mean and standard deviation per channel that networks trained on ImageNet expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def draw(height: int = 120, width: int = 160) -> np.ndarray:
    """A sun over two rows of hills, [height, width, 3] uint8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    sky = 1 - y / height
    image = np.stack((250 - 120 * sky, 190 - 40 * sky, 120 + 110 * sky), axis=-1)
    distance = np.hypot(x - 0.7 * width, y - 0.3 * height)
    image[distance < 14] = (255, 240, 170)
    far = y > height * (0.62 + 0.08 * np.sin(x / 17) + 0.04 * np.sin(x / 5.3))
    image[far] = (70, 110, 90)
    near = y > height * (0.78 + 0.06 * np.sin(x / 29 + 2) + 0.015 * np.sin(x / 3.1))
    image[near] = (40, 80, 45)
    return image.clip(0, 255).astype(np.uint8)


def write_ppm(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes [H, W, 3] uint8 as a binary PPM file."""
    height, width, _ = image.shape
    path.write_bytes(f"P6\n{width} {height}\n255\n".encode() + image.tobytes())


def read_ppm(path: pathlib.Path) -> np.ndarray:
    """Reads a binary PPM file without comments into [H, W, 3] uint8.

    Raises:
        ValueError: the file is not of that form.
    """
    data = path.read_bytes()
    fields = data.split(maxsplit=4)
    if len(fields) < 4 or fields[0] != b"P6" or fields[3] != b"255":
        raise ValueError(f"{path}: expected a binary PPM file (P6, 255 levels), got {data[:16]!r}. Convert the image.")
    width, height = int(fields[1]), int(fields[2])
    size = width * height * 3
    header = len(b"P6\n%d %d\n255\n" % (width, height))
    if len(data) != header + size:
        raise ValueError(f"{path}: expected {header + size} bytes for {width}x{height} pixels, got {len(data)}.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(height, width, 3)


def load_image(size: int = 224) -> torch.Tensor:
    """The image as a normalised batch of one, [1, 3, size, size] fp32."""
    pixels = torch.from_numpy(read_ppm(IMAGE).copy()).permute(2, 0, 1).float() / 255
    resized = F.interpolate(pixels.unsqueeze(0), size=(size, size), mode="bilinear", align_corners=False)
    return (resized - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


if __name__ == "__main__":
    write_ppm(IMAGE, draw())
    print(f"wrote {IMAGE} ({IMAGE.stat().st_size} bytes)")
