"""Rendering of scenes as 64 x 64 images, with Pillow and numpy.

The degradations are those that negative prompts name: blur, film grain, a stock photo's watermark, a duplicated object,
an object that leaves the frame and a deformed one.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datasets_prep.shapes.scene import COLOURS, POSITIONS, SIZES, Scene

IMAGE_SIZE = 64
_OVERSAMPLING = 4
_GRAIN_STRENGTH = 34.0  # deviation in grey levels
_BLUR_RADIUS = 3.0
_WATERMARK_OPACITY = 0.62
_DUPLICATE_SCALE, _DUPLICATE_OFFSET = 0.62, 14.0  # of the radius; pixels to the left and right
_CROP_SCALE, _CROP_OFFSET = 1.5, 2.7  # of the radius and of the position's offset
_WAVE_AMPLITUDE, _WAVE_LENGTH = 2.8, 16.0  # pixels

Point = tuple[float, float]


def render(scene: Scene) -> np.ndarray:
    """Render the scene as uint8 [64, 64, 3], sRGB; the same scene gives the same bytes."""
    colours = np.asarray(COLOURS[scene.colour] + COLOURS[scene.background]) + scene.tint
    object_rgb, background_rgb = np.clip(colours, 0, 255).reshape(2, 3)
    alpha = _render_coverage(scene)[..., None]
    image = np.clip(alpha * object_rgb + (1 - alpha) * background_rgb, 0, 255)
    pixels: np.ndarray = np.clip(_degrade(image, scene), 0, 255).round().astype(np.uint8)
    return pixels


def _render_coverage(scene: Scene) -> np.ndarray:
    """Return the share of each pixel that the object covers, float [64, 64] in 0..1."""
    side = IMAGE_SIZE * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    for centre, radius in _place_objects(scene):
        _draw(ImageDraw.Draw(mask), scene.shape, centre, radius)
    if scene.quality == "deformed":
        mask = Image.fromarray(_deform(np.asarray(mask), scene.texture_seed))
    return np.asarray(mask.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)) / 255.0


def _place_objects(scene: Scene) -> list[tuple[Point, float]]:
    """Return the centre and the radius of each object: one, or two if the scene is a duplicate."""
    (dx, dy, dr), (right, down) = scene.jitter, map(float, POSITIONS[scene.position])
    radius = SIZES[scene.size] + dr
    if scene.quality == "out of frame":
        right, down, radius = _CROP_OFFSET * right, _CROP_OFFSET * down, _CROP_SCALE * radius
        if scene.position == "in the centre":  # then it is too large for the frame
            radius = max(radius, 0.56 * IMAGE_SIZE)
    centre = (IMAGE_SIZE / 2 + right + dx, IMAGE_SIZE / 2 + down + dy)
    if scene.quality != "duplicate":
        return [(centre, radius)]
    x = min(max(centre[0], IMAGE_SIZE / 2 - 4), IMAGE_SIZE / 2 + 4)  # both fit into the frame
    return [((x + side * _DUPLICATE_OFFSET, centre[1]), _DUPLICATE_SCALE * radius) for side in (-1, 1)]


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


def _deform(mask: np.ndarray, seed: int) -> np.ndarray:
    """Return the mask with its rows and columns shifted along two waves."""
    phases = np.random.default_rng(seed).uniform(0, 2 * math.pi, 2)
    waves = 2 * math.pi * np.arange(len(mask)) / (_WAVE_LENGTH * _OVERSAMPLING)
    right, down = ((_OVERSAMPLING * _WAVE_AMPLITUDE * np.sin(waves + phase)).round().astype(int) for phase in phases)
    rows, columns = np.indices(mask.shape)
    edge = len(mask) - 1
    deformed: np.ndarray = mask[np.clip(rows + down[None, :], 0, edge), np.clip(columns + right[:, None], 0, edge)]
    return deformed


def _degrade(image: np.ndarray, scene: Scene) -> np.ndarray:
    if scene.quality == "blurry":
        blurred = Image.fromarray(image.round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(_BLUR_RADIUS))
        return np.asarray(blurred, dtype=np.float64)
    if scene.quality == "grainy":
        return np.asarray(image + _render_grain(scene.texture_seed)[..., None])
    if scene.quality == "watermark":
        light, dark = _WATERMARK_OPACITY * _LINES, _WATERMARK_OPACITY * _LINE_EDGES
        return np.asarray(image * (1 - light - dark) + 250.0 * light + 40.0 * dark)
    return image


def _render_grain(seed: int) -> np.ndarray:
    """Return the brightness that film grain adds, [64, 64] in grey levels with zero mean."""
    noise = np.random.default_rng(seed).standard_normal((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for axis in (0, 1):  # a grain is larger than a pixel
        noise = np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)
    return np.asarray(_GRAIN_STRENGTH * noise / noise.std())


def _draw_watermark(width: float) -> np.ndarray:
    """Return the coverage [64, 64] of the lines of a watermark: both diagonals and a frame between their ends."""
    side = IMAGE_SIZE * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    draw, pixels = ImageDraw.Draw(mask), round(width * _OVERSAMPLING)
    low, middle, high = 0, side // 2, side
    for start, end in (((low, low), (high, high)), ((low, high), (high, low))):
        draw.line((start, end), fill=255, width=pixels)
    corners = [(middle, low), (high, middle), (middle, high), (low, middle)]
    draw.line([*corners, corners[0]], fill=255, width=pixels)
    return np.asarray(mask.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), dtype=np.float64)[..., None] / 255.0


_LINES = _draw_watermark(1.6)
_LINE_EDGES = _draw_watermark(3.2) - _LINES
