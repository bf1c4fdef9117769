"""Normalization of pixels for a CLIP, read from the files beside its weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError, invalid

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's
STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR, PROCESSOR, OPEN_CLIP = "preprocessor_config.json", "processor_config.json", "open_clip_config.json"


def normalize(pixels: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Subtract the mean of each channel and divide by its deviation; [..., 3, H, W] in 0..1."""
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel of pixels in 0..1; OpenAI's by default."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @staticmethod
    def read(folder: Path, field: str) -> "Normalization":
        """Read what transformers or open_clip wrote beside the weights in this folder.

        Raises:
            UserError: naming the file, if it does not hold three numbers for each.
        """
        for name, keys in (
            (PREPROCESSOR, ()),
            (PROCESSOR, ("image_processor",)),
            (OPEN_CLIP, ("preprocess_cfg",)),
        ):
            if (folder / name).is_file() and (normalization := _parse(folder / name, keys, field)):
                return normalization
        return Normalization()

    def from_unit(self, pixels: Tensor) -> Tensor:
        """Normalize pixels in 0..1, [..., 3, H, W]."""
        return normalize(pixels, self.mean, self.std)

    def from_signed(self, images: Tensor) -> Tensor:
        """Normalize images in -1..1, [..., 3, H, W], as an autoencoder decodes them; the gradient flows through."""
        shift, factor = (
            torch.tensor(values, device=images.device)[:, None, None]
            for values in ([1 - 2 * mean for mean in self.mean], [2 * std for std in self.std])
        )
        return (images + shift) / factor


def _parse(file: Path, keys: tuple[str, ...], field: str) -> Normalization | None:
    """Read a file's mean and deviation; None if it has no section for images."""
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
        for key in keys:
            if key not in values:
                return None
            values = values[key]
        if values.get("do_normalize") is False:
            return Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        mean, std = (
            tuple(float(value) for value in values.get(f"image_{name}", values.get(name, default)))
            for name, default in (("mean", MEAN), ("std", STD))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{field}: {file} cannot be read ({type(error).__name__}: {error})") from None
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise invalid(f"{field}: {file}", (mean, std), "three means and three standard deviations above 0")
    return Normalization(mean, std)
