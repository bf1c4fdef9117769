"""One self-contained HTML page: scores with intervals, and images side by side. Opens without a server."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from pipeline.recipe import Recipe, dump

ZOOM = 2


def write_report(
    recipe: Recipe, summary: dict[str, Any], rows: Sequence[tuple[str, np.ndarray]], captions: Sequence[str]
) -> str:
    """The page's text. Prompts and every other value are escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["percent"] = percent
    pictures = [(label, [_data_uri(pixels) for pixels in images]) for label, images in rows]
    page: str = environment.get_template("report.html.j2").render(
        recipe=recipe, recipe_toml=dump(recipe), summary=summary, pictures=pictures, captions=captions
    )
    return page


def percent(share: dict[str, float]) -> str:
    """'97.3 % (95.5 to 98.4)': a share with its Wilson interval."""
    if not share["total"]:
        return "no images"
    return f"{100 * share['value']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    height, width = (ZOOM * side for side in pixels.shape[:2])
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
