"""The Shapes toy dataset: scenes of which every attribute is known, with their images and captions."""

from datasets_prep.shapes.caption import build_full_prompt, sample_caption, sample_tags
from datasets_prep.shapes.render import IMAGE_SIZE, render
from datasets_prep.shapes.scene import (
    COLOURS,
    POSITIONS,
    QUALITIES,
    SHAPES,
    SIZES,
    Scene,
    is_held_out,
    sample_scene,
)

__all__ = [
    "COLOURS",
    "IMAGE_SIZE",
    "POSITIONS",
    "QUALITIES",
    "SHAPES",
    "SIZES",
    "Scene",
    "build_full_prompt",
    "is_held_out",
    "render",
    "sample_caption",
    "sample_scene",
    "sample_tags",
]
