"""Preprocessing steps of images, which the metrics combine in different orders."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor


def to_tensor(image: Image) -> Tensor:
    """Return [3, H, W] in 0..1; transparency is dropped, not blended."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div(255)


def resize(pixels: Tensor, height: int, width: int, mode: str, *, antialias: bool) -> Tensor:
    """Return [C, height, width]; bicubic interpolation may overshoot 0..1, which is kept."""
    return F.interpolate(pixels[None], (height, width), mode=mode, align_corners=False, antialias=antialias)[0]


def compute_center_start(length: int, side: int) -> int:
    """Return the start of a centred range of `side` pixels; halves are rounded as in torchvision."""
    return round((length - side) / 2)


def iter_batches(images: Sequence[Image], size: int, prepare: Callable[[Image], Tensor]) -> Iterator[Tensor]:
    """Yield batches [B, 3, H, W]."""
    for start in range(0, len(images), size):
        yield torch.stack([prepare(image) for image in images[start : start + size]])
