"""The images of an evaluation, looked up by their rows for contact sheets and reports."""

import io
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from pipeline.evaluation.contact_sheet import contact_sheet
from pipeline.evaluation.exclusion import NEGATED
from pipeline.evaluation.plan import EXCLUSION_SET, PLAIN, STUDENT_SYSTEM
from pipeline.storage import Folder

Row = dict[str, Any]
IMAGES = "images"  # the folder of an evaluation's images
COLUMNS = 10


class ImageStore:
    """The images in an evaluation's folder, and the rows of its results."""

    def __init__(self, folder: Folder, rows: Sequence[Row]) -> None:
        self.folder, self.rows = folder, rows

    def png(self, row: Row) -> bytes:
        """Return the PNG of a row's image."""
        return _part(self.folder, row["images"])[_key(row)]

    def pixels(self, row: Row) -> np.ndarray:
        """Return a row's image as uint8 [H, W, 3]."""
        return np.asarray(open_png(self.png(row)).convert("RGB"))

    def side_by_side(self, summary: dict[str, Any]) -> list[list[Row]]:
        """Return columns of rows: the images of one prompt and noise, by every sampling method."""
        return self._excluded() if "exclusion" in summary else self._systems()

    def sheet(self, summary: dict[str, Any]) -> Image.Image:
        """Return a contact sheet: for exclusion plain, guidance and NASA at the chosen scale; else every system."""
        chosen = summary.get("chosen_way")
        columns = [
            [row for row in column if not chosen or row["system"] in (PLAIN.label, chosen) or "CFG" in row["system"]]
            for column in self.side_by_side(summary)[:COLUMNS]
        ]
        labels = [row["system"] for row in columns[0]] if columns else []
        rows = [
            (label, np.stack([self.pixels(column[number]) for column in columns]))
            for number, label in enumerate(labels)
        ]
        captions = [f"{column[0]['prompt']} MINUS {column[0]['negative_prompt']}" for column in columns]
        return contact_sheet(rows, captions)

    def _excluded(self) -> list[list[Row]]:
        """Return the selected seeds, one of each pair in turn."""
        tested = [
            row for row in self.rows if row["set"] == EXCLUSION_SET and row["selected"] and not row["calibration"]
        ]
        systems = list(dict.fromkeys(row["system"] for row in tested if row["system"] != NEGATED))
        by_key = {(row["system"], row["prompt"], row["negative_prompt"], row["seed"]): row for row in tested}
        shown = [key[1:] for key in by_key if key[0] == PLAIN.label]
        turns: dict[Any, int] = defaultdict(int)
        order = []
        for key in shown:
            order.append((turns[key[:2]], key))
            turns[key[:2]] += 1
        return [[by_key[system, *key] for system in systems] for _, key in sorted(order, key=lambda each: each[0])]

    def _systems(self) -> list[list[Row]]:
        """Return the prompts that the student was sampled on by every sampling method."""
        own = [row for row in self.rows if row["system"].startswith(STUDENT_SYSTEM) and row["set"] != EXCLUSION_SET]
        names = list(dict.fromkeys(row["system"] for row in own))
        columns: dict[Any, dict[str, Row]] = defaultdict(dict)
        for row in own:
            columns[row["set"], row["index"]][row["system"]] = row
        return [[column[name] for name in names] for column in columns.values() if len(column) == len(names)]


@lru_cache(maxsize=64)
def _part(folder: Folder, key: str) -> dict[tuple[Any, ...], bytes]:
    table = (folder / IMAGES).read_table(f"{key}.parquet").to_pylist()
    return {_key(row): row["image"] for row in table}


def _key(row: Row) -> tuple[Any, ...]:
    return row["system"], row["set"], row["prompt"], row["negative_prompt"], row["seed"]


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def open_png(content: bytes) -> Image.Image:
    """Open an encoded image."""
    return Image.open(io.BytesIO(content))


def thumbnail(png: bytes, side: int) -> bytes:
    """Return a WebP of at most `side` pixels; a smaller image keeps its size."""
    image = open_png(png).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small = max(image.size) <= 96  # pixel art is kept as it is
    image.save(buffer, format="WEBP", quality=80, lossless=small, method=4)
    return buffer.getvalue()
