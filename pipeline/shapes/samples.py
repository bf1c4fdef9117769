"""Images of the Shapes toy dataset as tensors, with their captions and labels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets_prep import shapes
from datasets_prep.shapes import Scene

LABELS: dict[str, tuple[str, ...]] = {
    "shape": shapes.SHAPES,
    "colour": tuple(shapes.COLOURS),
    "background": tuple(shapes.COLOURS),
    "quality": shapes.QUALITIES,
    "size": tuple(shapes.SIZES),
    "position": tuple(shapes.POSITIONS),
}


@dataclass(frozen=True)
class Samples:
    """Images float32 [B, 3, 64, 64] in -1..1, one caption an image, and the scenes they show."""

    images: Tensor
    captions: list[str]
    scenes: list[Scene]

    def get_labels(self) -> dict[str, Tensor]:
        """Return class indices int64 [B] for each attribute."""
        return {
            name: torch.tensor([values.index(getattr(scene, name)) for scene in self.scenes])
            for name, values in LABELS.items()
        }


def draw_samples(count: int, seed: int | tuple[int, ...], *, held_out: bool = False) -> Samples:
    """Render `count` random scenes with captions; the same seed gives the same samples."""
    rng = np.random.default_rng(seed)
    scenes = [shapes.sample_scene(rng, held_out=held_out) for _ in range(count)]
    pixels = np.stack([shapes.render(scene) for scene in scenes])
    captions = [shapes.sample_caption(scene, rng) for scene in scenes]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Samples(images, captions, scenes)
