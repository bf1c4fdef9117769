"""The report: one HTML file without links to anything outside it."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from pipeline.evaluation.aggregate import metric_names
from pipeline.evaluation.images import ImageStore, thumbnail
from pipeline.recipe import Recipe, dump

SIDE = 192  # of a thumbnail, in pixels
COMPARED = 48  # prompts that are shown in every way


def write_report(recipe: Recipe, summary: dict[str, Any], rows: Sequence[dict[str, Any]], pictures: ImageStore) -> str:
    """Return the report's HTML, in which every value is escaped."""
    return render(
        "report.html.j2",
        page_data(summary, rows, pictures),
        title=f"{recipe.name}: evaluation",
        gallery="All images",
        card_width="9rem",
        recipe=recipe,
        recipe_toml=dump(recipe),
        summary=summary,
    )


def render(template: str, data: dict[str, Any], **values: Any) -> str:
    """Render a template; `data` is what its script shows."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    environment.filters |= {"percent": percent, "interval": interval, "figure": figure}
    page: str = environment.get_template(template).render(data=data, **values)
    return page


def page_data(summary: dict[str, Any], rows: Sequence[dict[str, Any]], pictures: ImageStore) -> dict[str, Any]:
    """Return what the page's script shows: all images of the student, and some prompts by every method."""
    student = [row for row in rows if row["system"] == summary["student"]]
    names = metric_names(student)
    return {
        "metrics": names,
        "cards": [_card(row, names, pictures) for row in student],
        "columns": [column_of([column], [pictures]) for column in pictures.side_by_side(summary)[:COMPARED]],
    }


def _card(row: dict[str, Any], names: Sequence[str], pictures: ImageStore) -> dict[str, Any]:
    scores = [row.get(name) for name in names]
    return {"pictures": [{"image": data_uri(pictures.png(row))}], "scores": scores} | {
        name: row[name] for name in ("set", "prompt", "seed")
    }


def column_of(
    columns: Sequence[Sequence[dict[str, Any]]], pictures: Sequence[ImageStore], names: Sequence[str] = ("",)
) -> dict[str, Any]:
    """One prompt and noise in every way, by each of the students: each way's pictures."""
    first = columns[0][0]
    ways = []
    for rows in zip(*columns, strict=True):
        shown = [
            {"way": name, "image": data_uri(own.png(row))} for name, own, row in zip(names, pictures, rows, strict=True)
        ]
        ways.append({"way": rows[0]["system"], "pictures": shown})
    return {"prompt": first["prompt"], "negative": first["negative_prompt"], "ways": ways}


def percent(share: dict[str, float]) -> str:
    """'97.3 % (95.5 to 98.4)': a share with its Wilson interval."""
    return interval(share) if share["total"] else "no images"


def interval(share: dict[str, float]) -> str:
    """'97.3 % (95.5 to 98.4)': a share with its interval."""
    if not math.isfinite(share["value"]):
        return "not to be told: the judge is no better than chance"
    return f"{100 * share['value']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


def figure(metric: dict[str, Any]) -> str:
    """'0.312 (0.305 to 0.319)': a mean with its interval."""
    if not metric["images"]:
        return "no images"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def data_uri(png: bytes) -> str:
    """Encode a PNG as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(thumbnail(png, SIDE)).decode()
