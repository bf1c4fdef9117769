"""Contact sheets: rows of images with a label at the left, captions at the top."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ZOOM = 2
MARGIN = 150
LINE = 14


def to_pixels(images: Tensor) -> np.ndarray:
    """Convert images [B, 3, H, W] in -1..1 to uint8 [B, H, W, 3]."""
    scaled = (images.float().clamp(-1, 1) + 1) * 127.5
    pixels: np.ndarray = scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def round_to_uint8(images: Tensor) -> Tensor:
    """Round images to 8 bits per channel, as a PNG does."""
    return from_pixels(to_pixels(images))


def from_pixels(pixels: np.ndarray) -> Tensor:
    """Convert uint8 [B, H, W, 3] to images [B, 3, H, W] in -1..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_contact_sheet(rows: Sequence[tuple[str, np.ndarray]], captions: Sequence[str] = ()) -> Image.Image:
    """Draw one labelled row for each (label, uint8 [N, H, W, 3]), and a caption for each column."""
    height, width = (ZOOM * side for side in rows[0][1].shape[1:3])
    columns = max(len(images) for _, images in rows)
    wrapped = [_wrap(caption, width // 6) for caption in captions]
    top = max((len(lines) for lines in wrapped), default=0) * LINE + (6 if wrapped else 0)
    sheet = Image.new("RGB", (MARGIN + columns * (width + 4), top + len(rows) * (height + 4)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, lines in enumerate(wrapped):
        draw.multiline_text((MARGIN + column * (width + 4), 2), "\n".join(lines), fill="black", font=font, spacing=2)
    for row, (label, images) in enumerate(rows):
        y = top + row * (height + 4)
        draw.multiline_text((4, y + height // 3), "\n".join(_wrap(label, 22)), fill="black", font=font)
        for column, pixels in enumerate(images):
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (MARGIN + column * (width + 4), y))
    return sheet


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
