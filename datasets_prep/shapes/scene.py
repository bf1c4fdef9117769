"""Scenes of the Shapes toy dataset: one object, one background, one quality."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = {  # sRGB, 0..255
    "red": (214, 40, 40),
    "orange": (250, 140, 25),
    "yellow": (248, 224, 62),
    "green": (52, 164, 76),
    "cyan": (72, 206, 220),
    "blue": (44, 76, 206),
    "purple": (142, 56, 176),
    "white": (244, 244, 244),
}
SIZES = {"small": 12.5, "medium": 16.0, "large": 20.0}  # radius of the enclosing circle, pixels
POSITIONS = {  # offset of the object's centre from the image's, pixels (right, down)
    "in the centre": (0, 0),
    "on the left": (-8, 0),
    "on the right": (8, 0),
    "at the top": (0, -8),
    "at the bottom": (0, 8),
}
QUALITIES = ("clean", "blurry", "grainy", "watermark", "duplicate", "out of frame", "deformed")
ATTRIBUTES = ("shape", "colour", "background")  # of a scene, that every held-out prompt names
DEGRADED_SHARE = 0.45
HELD_OUT_SHARE = 8  # one in this many (shape, colour, background, size) tuples is never trained on


_COLOUR_NAMES, _SIZE_NAMES, _POSITION_NAMES = tuple(COLOURS), tuple(SIZES), tuple(POSITIONS)


@dataclass(frozen=True)
class Scene:
    """The attributes of a scene, and small variations that no caption mentions."""

    shape: str
    colour: str
    background: str
    size: str
    position: str
    quality: str = "clean"
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)  # right, down, radius; pixels
    tint: tuple[int, ...] = (0,) * 6  # added to the object's and the background's RGB
    texture_seed: int = 0  # of the grain and the deformation


def is_held_out(scene: Scene) -> bool:
    """Tell whether a scene is held out for evaluation; a function of its shape, colours and size."""
    key = f"{scene.shape}/{scene.colour}/{scene.background}/{scene.size}"
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


def pick(names: Sequence[str], rng: np.random.Generator) -> str:
    """Sample one of the names; `rng.choice` samples the same and takes ten times as long."""
    return names[int(rng.integers(len(names)))]


def sample_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """Sample a scene with independent, uniform attributes, from the training or the held-out part."""
    while True:
        colour, background = (_COLOUR_NAMES[index] for index in rng.choice(len(COLOURS), size=2, replace=False))
        degraded = rng.random() < DEGRADED_SHARE
        scene = Scene(
            shape=pick(SHAPES, rng),
            colour=colour,
            background=background,
            size=pick(_SIZE_NAMES, rng),
            position=pick(_POSITION_NAMES, rng),
            quality=pick(QUALITIES[1:], rng) if degraded else "clean",
            jitter=tuple(rng.uniform((-2, -2, -0.8), (2, 2, 0.8)).tolist()),
            tint=tuple(rng.integers(-10, 11, size=6).tolist()),
            texture_seed=int(rng.integers(2**31)),
        )
        if is_held_out(scene) == held_out:
            return scene
