"""Saturation and contrast: a distilled student that drifts from its teacher's shows it here first."""

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from pipeline.evaluation.scorers.scorer import Options

LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601


class ColourStatistics:
    """`saturation`: mean of HSV's saturation, 0..1. `contrast`: deviation of the luma over pixels, 0..0.5."""

    options: Options = {"scorer": "colour statistics"}  # noqa: RUF012

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Return both statistics of images."""
        pixels = [np.asarray(image.convert("RGB"), dtype=np.float64) / 255 for image in images]
        return {
            "saturation": [float(_compute_saturation(image).mean()) for image in pixels],
            "contrast": [float((image @ np.array(LUMA)).std()) for image in pixels],
        }


def _compute_saturation(image: np.ndarray) -> np.ndarray:
    high, low = image.max(axis=-1), image.min(axis=-1)
    saturation: np.ndarray = (high - low) / np.where(high > 0, high, 1)
    return saturation
