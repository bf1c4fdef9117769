"""Rendering of scenes as 64 x 64 images, with Pillow and numpy."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datasets_prep.shapes.scene import COLOURS, POSITIONS, SIZES, Scene

IMAGE_SIZE = 64
_OVERSAMPLING = 4
_GRAIN_SIZE = 8  # pixels: an autoencoder of factor 8 draws one value a latent, not a texture within it
_GRAIN_STRENGTH = 24.0
_DARKNESS = 0.38
_BLUR_RADIUS = 3.0

Point = tuple[float, float]


def render(scene: Scene) -> np.ndarray:
    """Render the scene as uint8 [64, 64, 3], sRGB; the same scene gives the same bytes."""
    colours = np.asarray(COLOURS[scene.colour] + COLOURS[scene.background]) + scene.tint
    object_rgb, background_rgb = np.clip(colours, 0, 255).reshape(2, 3)
    alpha = _render_coverage(scene)[..., None]
    image = alpha * object_rgb + (1 - alpha) * background_rgb
    return _degrade(np.clip(image, 0, 255), scene.quality).round().astype(np.uint8)


def _render_coverage(scene: Scene) -> np.ndarray:
    """Return the share of each pixel that the object covers, float [64, 64] in 0..1."""
    right, down = POSITIONS[scene.position]
    dx, dy, dr = scene.jitter
    centre = (IMAGE_SIZE / 2 + right + dx, IMAGE_SIZE / 2 + down + dy)
    side = IMAGE_SIZE * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    _draw(ImageDraw.Draw(mask), scene.shape, centre, SIZES[scene.size] + dr)
    return np.asarray(mask.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)) / 255.0


def _draw(draw: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float) -> None:
    x, y, r = (_OVERSAMPLING * value for value in (*centre, radius))
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=255)
    elif shape == "ring":
        draw.ellipse(box, fill=255)
        draw.ellipse(tuple(c + s * 0.45 * r for c, s in zip(box, (1, 1, -1, -1), strict=True)), fill=0)
    elif shape == "square":
        draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=255)
    elif shape == "cross":
        draw.rectangle((x - r, y - 0.32 * r, x + r, y + 0.32 * r), fill=255)
        draw.rectangle((x - 0.32 * r, y - r, x + 0.32 * r, y + r), fill=255)
    elif shape == "triangle":
        draw.polygon(_compute_corners(x, y, (1.1 * r,), 3), fill=255)
    else:
        assert shape == "star", shape
        draw.polygon(_compute_corners(x, y, (1.1 * r, 0.46 * r), 10), fill=255)


def _compute_corners(x: float, y: float, radii: tuple[float, ...], count: int) -> list[Point]:
    """Return corners at equal angles from the top, clockwise, cycling through the radii."""
    angles = [2 * math.pi * i / count for i in range(count)]
    lengths = [radii[i % len(radii)] for i in range(count)]
    return [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in zip(lengths, angles, strict=True)]


def _degrade(image: np.ndarray, quality: str) -> np.ndarray:
    if quality == "blurry":
        blurred = Image.fromarray(image.round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(_BLUR_RADIUS))
        return np.asarray(blurred, dtype=np.float64)
    if quality == "grainy":
        return np.asarray(np.clip(image + _render_grain()[..., None], 0, 255))
    if quality == "dark":
        return image * _DARKNESS
    return image


def _render_grain() -> np.ndarray:
    """Return coarse speckle of zero mean, [64, 64] in grey levels: alternating lighter and darker squares."""
    turns = np.indices((IMAGE_SIZE // _GRAIN_SIZE,) * 2).sum(axis=0) % 2
    return np.kron(_GRAIN_STRENGTH * (1 - 2.0 * turns), np.ones((_GRAIN_SIZE, _GRAIN_SIZE)))
