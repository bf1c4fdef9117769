"""The images of an evaluation, looked up by their rows for contact sheets and reports."""

import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter

import numpy as np
from PIL import Image

from pipeline.evaluation.contact_sheet import draw_contact_sheet
from pipeline.evaluation.exclusion import NEGATED
from pipeline.evaluation.plan import EXCLUSION_SET, PLAIN, STUDENT_SYSTEM
from pipeline.evaluation.results import EvaluationRow, ImageKey, Summary
from pipeline.storage import Folder

IMAGES = "images"  # the folder of an evaluation's images
COLUMNS = 10
CLEAN = "clean"


class ImageStore:
    """The images in an evaluation's folder, and the rows of its results."""

    def __init__(self, folder: Folder, rows: Sequence[EvaluationRow]) -> None:
        self.folder, self.rows = folder, rows

    def read_png(self, row: EvaluationRow) -> bytes:
        """Return the PNG of a row's image."""
        return _read_images(self.folder, row.images)[_get_image_key(row)]

    def read_pixels(self, row: EvaluationRow) -> np.ndarray:
        """Return a row's image as uint8 [H, W, 3]."""
        return np.asarray(open_png(self.read_png(row)).convert("RGB"))

    def select_side_by_side(self, summary: Summary) -> list[list[EvaluationRow]]:
        """Return columns of rows: the images of one prompt and seed, by every sampling method."""
        return self._select_exclusion_columns() if summary.exclusion else self._select_system_columns()

    def draw_sheet(self, summary: Summary) -> Image.Image:
        """Draw a contact sheet: plain, guided and NASA images for an exclusion test, otherwise all systems."""
        chosen = summary.chosen_sampling_method
        columns = [
            [row for row in column if not chosen or row.system in (PLAIN.label, chosen) or "CFG" in row.system]
            for column in self.select_side_by_side(summary)[:COLUMNS]
        ]
        labels = [row.system for row in columns[0]] if columns else []
        rows = [
            (label, np.stack([self.read_pixels(column[number]) for column in columns]))
            for number, label in enumerate(labels)
        ]
        captions = [f"{column[0].prompt} MINUS {column[0].negative_prompt}" for column in columns]
        return draw_contact_sheet(rows, captions)

    def _select_exclusion_columns(self) -> list[list[EvaluationRow]]:
        """Return one column of rows per selected seed, alternating between pairs; clean plain images come first."""
        tested = [row for row in self.rows if row.set == EXCLUSION_SET and row.selected and not row.selects_scale]
        systems = list(dict.fromkeys(row.system for row in tested if row.system != NEGATED))
        by_key = {(row.system, row.image_key): row for row in tested}
        turns: Counter[tuple[str, str]] = Counter()
        order = []
        plain = [row for row in tested if row.system == PLAIN.label]
        for row in sorted(plain, key=lambda row: row.shown.get("quality", CLEAN) != CLEAN):
            pair = row.prompt, row.negative_prompt
            order.append((turns[pair], row.image_key))
            turns[pair] += 1
        return [[by_key[system, key] for system in systems] for _, key in sorted(order, key=itemgetter(0))]

    def _select_system_columns(self) -> list[list[EvaluationRow]]:
        """Return one column of rows per prompt that the student was sampled on by every sampling method."""
        sampled = [row for row in self.rows if row.system.startswith(STUDENT_SYSTEM) and row.set != EXCLUSION_SET]
        names = list(dict.fromkeys(row.system for row in sampled))
        columns: dict[tuple[str, int | None], dict[str, EvaluationRow]] = defaultdict(dict)
        for row in sampled:
            columns[row.set, row.index][row.system] = row
        return [[column[name] for name in names] for column in columns.values() if len(column) == len(names)]


@lru_cache(maxsize=64)
def _read_images(folder: Folder, key: str) -> dict[tuple[str, ImageKey], bytes]:
    table = (folder / IMAGES).read_table(f"{key}.parquet").to_pylist()
    images = [columns.pop("image") for columns in table]
    rows = map(EvaluationRow.from_columns, table)
    return {_get_image_key(row): image for row, image in zip(rows, images, strict=True)}


def _get_image_key(row: EvaluationRow) -> tuple[str, ImageKey]:
    return row.system, row.image_key


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def open_png(content: bytes) -> Image.Image:
    """Open an encoded image."""
    return Image.open(io.BytesIO(content))


def encode_thumbnail(png: bytes, side: int) -> bytes:
    """Return a WebP of at most `side` pixels; a smaller image keeps its size."""
    image = open_png(png).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small = max(image.size) <= 96  # pixel art is kept as it is
    image.save(buffer, format="WEBP", quality=80, lossless=small, method=4)
    return buffer.getvalue()
