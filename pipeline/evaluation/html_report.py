"""The report: one HTML file without links to anything outside it."""

import base64
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from pipeline.evaluation.aggregate import list_metric_names
from pipeline.evaluation.image_store import ImageStore, encode_thumbnail
from pipeline.evaluation.results import CorrectedShare, EvaluationRow, Summary, select_student_rows
from pipeline.evaluation.statistics import Estimate, Share
from pipeline.recipe import Recipe, dump

SIDE = 192  # longest side of a thumbnail, in pixels
COMPARED = 48  # prompts that are shown by every sampling method


def write_report(
    recipe: Recipe, summary: Summary, rows: Sequence[EvaluationRow], images: ImageStore, curves: bytes = b""
) -> str:
    """Return the report's HTML, in which every value is escaped; `curves` is a PNG of the training's curves."""
    return render(
        "report.html.j2",
        build_page_data(summary, rows, images),
        title=f"{recipe.name}: evaluation",
        gallery="All images",
        card_width="9rem",
        recipe=recipe,
        recipe_toml=dump(recipe),
        summary=summary,
        curves=base64.b64encode(curves).decode(),
    )


@dataclass(frozen=True)
class Picture:
    """An image of the page: its caption, and a data URI."""

    label: str
    image: str


@dataclass(frozen=True)
class Card:
    """One prompt of the gallery: its images, and their scores, or the differences of two images' scores."""

    pictures: tuple[Picture, ...]
    scores: tuple[float | None, ...]
    set: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class MethodPictures:
    """The images of one prompt and seed by one sampling method: one of each student."""

    label: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Column:
    """The images of one prompt and seed by every sampling method, which the slider steps through."""

    prompt: str
    negative: str
    methods: tuple[MethodPictures, ...]


@dataclass(frozen=True)
class PageData:
    """The data of the page's script. `metrics` are the names of the cards' scores."""

    metrics: tuple[str, ...]
    cards: tuple[Card, ...]
    columns: tuple[Column, ...] = ()


def render(template: str, data: PageData, **values: object) -> str:
    """Render a template; `data` is what its script shows."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    environment.filters |= {"percent": format_share, "interval": format_interval, "figure": format_metric}
    page: str = environment.get_template(template).render(data=asdict(data), **values)
    return page


def build_page_data(summary: Summary, rows: Sequence[EvaluationRow], images: ImageStore) -> PageData:
    """Return the data of an evaluation's page: all images of the student, and some prompts by every method."""
    student = select_student_rows(rows, summary)
    names = list_metric_names(student)
    return PageData(
        tuple(names),
        tuple(_build_card(row, names, images) for row in student),
        tuple(build_slider_column([column], [images]) for column in images.select_side_by_side(summary)[:COMPARED]),
    )


def _build_card(row: EvaluationRow, names: Sequence[str], images: ImageStore) -> Card:
    scores = tuple(row.scores.get(name) for name in names)
    return Card((Picture("", encode_data_uri(images.read_png(row))),), scores, row.set, row.prompt, row.seed)


def build_slider_column(
    columns: Sequence[Sequence[EvaluationRow]], images: Sequence[ImageStore], names: Sequence[str] = ("",)
) -> Column:
    """Return the images of one prompt and seed by every sampling method; `columns` has the rows of each student."""
    methods = []
    for rows in zip(*columns, strict=True):
        pictures = (
            Picture(name, encode_data_uri(store.read_png(row)))
            for name, store, row in zip(names, images, rows, strict=True)
        )
        methods.append(MethodPictures(rows[0].system, tuple(pictures)))
    return Column(columns[0][0].prompt, columns[0][0].negative_prompt, tuple(methods))


def format_share(share: Share) -> str:
    """Return a share with its interval, such as '97.3 % (95.5 to 98.4)'."""
    return format_interval(share) if share.total else "no images"


def format_interval(share: Share | CorrectedShare) -> str:
    """Return a share with its interval; "unknown" if the judge is no better than chance."""
    if not math.isfinite(share.value):
        return "unknown: the judge is no better than chance"
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def format_metric(metric: Estimate) -> str:
    """Return a mean with its interval, such as '0.312 (0.305 to 0.319)'."""
    return f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})" if metric.images else "no images"


def encode_data_uri(png: bytes) -> str:
    """Encode a PNG's thumbnail as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(encode_thumbnail(png, SIDE)).decode()
