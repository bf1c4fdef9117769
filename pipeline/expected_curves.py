"""The curves that a recipe's training is expected to follow: bands over seeds, drawn behind a run's own curves.

A recipe has them in `recipes/curves/NAME.json`, written by `benchmarks/expected_curves.py`.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO

import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.Image import Image

from pipeline.recipe import RECIPES, Recipe, load
from pipeline.recipe.params import list_changes
from pipeline.strict_model import StrictModel

COLUMNS = 4
SHARES = ("clean", "diversity")  # metrics in 0..1
Curve = Sequence[tuple[int, float]]
"""Values of a metric by step."""


class Band(StrictModel):
    """The lowest, the median and the highest value over seeds, at each of the steps."""

    steps: tuple[int, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


class ExpectedCurves(StrictModel):
    """The bands of one recipe by metric, and the seeds and the command that they come from."""

    seeds: int
    command: str
    bands: dict[str, Band]


def read_expected_curves(recipe: Recipe) -> ExpectedCurves | None:
    """Return the curves of the project's recipe of this name; None if it has none, or trains another teacher."""
    file = RECIPES / "curves" / f"{recipe.name}.json"
    if not file.is_file() or recipe.teacher != load(recipe.name).teacher:
        return None
    return ExpectedCurves.model_validate_json(file.read_bytes())


def draw_expected_curves(recipe: Recipe, expected: ExpectedCurves, own: Mapping[str, Curve]) -> Image:
    """Draw one panel for each band, with a run's own curve over it; a single value is a point."""
    rows = -(-len(expected.bands) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.5 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel, (name, band) in zip(panels, expected.bands.items(), strict=False):
        _draw_panel(panel, name, band, own.get(name, ()))
    for panel in panels[len(expected.bands) :]:
        panel.set_axis_off()
    figure.suptitle(_describe(recipe, expected), fontsize=10)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return PIL.Image.open(content).convert("RGB")


def _draw_panel(panel: Axes, name: str, band: Band, own: Curve) -> None:
    panel.fill_between(band.steps, band.low, band.high, color="#c9d3de", linewidth=0)
    panel.plot(band.steps, band.median, color="#8494a6", linewidth=1)
    if own:
        steps, values = zip(*own, strict=True)
        panel.plot(steps, values, color="#c2410c", linewidth=1.4, marker="o" if len(own) == 1 else "", markersize=5)
    if name.startswith(SHARES):
        panel.set_ylim(0, 1.05)
    panel.set_title(name.replace("_", " "), fontsize=9)
    panel.tick_params(labelsize=7)


def _describe(recipe: Recipe, expected: ExpectedCurves) -> str:
    changes = ", ".join(f"{name}={value}" for name, value in list_changes(recipe).items() if name != "seed")
    own = f"this run, which changes {changes[:120]}" if changes else "this run"
    return (
        f"Orange: {own}. Grey: the recipe {recipe.name} over {expected.seeds} seeds, lowest to highest, and the median"
    )
