"""The images that an evaluation keeps, found again by their rows: for contact sheets and reports."""

import io
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.evaluation.asks import EXCLUDED, PLAIN, STUDENT
from pipeline.evaluation.exclusion import NEGATED
from pipeline.evaluation.sheet import contact_sheet
from pipeline.evaluation.studio import IMAGES
from pipeline.storage import Folder

Row = dict[str, Any]
COLUMNS = 10


class Pictures:
    """Of an evaluation's folder and its rows."""

    def __init__(self, folder: Folder, rows: Sequence[Row]) -> None:
        self.folder, self.rows = folder, rows

    def of(self, row: Row) -> bytes:
        """The PNG of a row."""
        return _part(self.folder, row["images"])[_key(row)]

    def pixels(self, row: Row) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.of(row))).convert("RGB"))

    def side_by_side(self, summary: dict[str, Any]) -> list[list[Row]]:
        """Columns of rows: what the student made of the same prompt and noise, in every way."""
        return self._excluded() if "exclusion" in summary else self._systems()

    def sheet(self, summary: dict[str, Any]) -> Image.Image:
        """Of exclusion: plain, with guidance and with NASA at the scale that was chosen; else every way."""
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
        """The seeds that show each pair's attribute: the first of each pair, then the second of each, and so on."""
        tested = [row for row in self.rows if row["set"] == EXCLUDED and row["selected"] and not row["calibration"]]
        ways = list(dict.fromkeys(row["system"] for row in tested if row["system"] != NEGATED))
        by_key = {(row["system"], row["prompt"], row["negative_prompt"], row["seed"]): row for row in tested}
        shown = [key[1:] for key in by_key if key[0] == PLAIN.label]
        turns: dict[Any, int] = defaultdict(int)
        order = []
        for key in shown:
            order.append((turns[key[:2]], key))
            turns[key[:2]] += 1
        return [[by_key[way, *key] for way in ways] for _, key in sorted(order, key=lambda each: each[0])]

    def _systems(self) -> list[list[Row]]:
        """The student's prompts that it was given in every way."""
        own = [row for row in self.rows if row["system"].startswith(STUDENT) and row["set"] != EXCLUDED]
        names = list(dict.fromkeys(row["system"] for row in own))
        columns = defaultdict(dict[str, Row])
        for row in own:
            columns[row["set"], row["index"]][row["system"]] = row
        return [[column[name] for name in names] for column in columns.values() if len(column) == len(names)]


@lru_cache(maxsize=64)
def _part(folder: Folder, key: str) -> dict[tuple[Any, ...], bytes]:
    table = pq.read_table(io.BytesIO((folder / IMAGES).read(f"{key}.parquet"))).to_pylist()
    return {_key(row): row["image"] for row in table}


def _key(row: Row) -> tuple[Any, ...]:
    return row["system"], row["set"], row["prompt"], row["negative_prompt"], row["seed"]


def thumbnail(png: bytes, side: int) -> bytes:
    """WebP of at most so many pixels a side; small images are not blurred by enlarging them here."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small = max(image.size) <= 96  # pixel art is kept as it is
    image.save(buffer, format="WEBP", quality=80, lossless=small, method=4)
    return buffer.getvalue()
