"""The ablation's table and figure, from the rows of its runs."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.ablation.runs import Plan

DATA, IMAGE, PAGE = Path("data/ablation.json"), Path("images/ablation.png"), Path("ablation.md")
BEGIN, END = "<!-- table: written by `python -m benchmarks.ablation` -->", "<!-- end of the table -->"


def write(summary: dict[str, Any], plan: Plan, folder: Path) -> str:
    """Write data, figure and page under `folder` and return the table; only the table of an existing page changes."""
    text = format_table(summary)
    for file in (DATA, IMAGE, PAGE):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / DATA).write_text(json.dumps({**plan.identity, **summary}, indent=1) + "\n")
    draw(summary, folder / IMAGE)
    page = folder / PAGE
    before, _, rest = (page.read_text() if page.is_file() else f"{BEGIN}\n{END}\n").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    return text


def format_table(summary: dict[str, Any]) -> str:
    """Return Markdown: the shares of each variant, then the contrasts in points."""
    lines = [
        "| negative prompt in training on | clean and right, % | with NASA-I, % | removed, % | kept, % |",
        "|---|---|---|---|---|",
    ]
    for row in summary["table"]:
        cells = [f"{row[name]['mean']:.1f} ({_join_values(row[name]['seeds'])})" for name in ("plain", "nasa_i")]
        cells += [f"{row[name]['mean']:.1f}" for name in ("removed", "kept")]
        lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| contrast | images | difference, points | 95 % interval over prompts | by seed |",
        "|---|---|---|---|---|",
    ]
    for row in summary["contrasts"]:
        images = {"plain": "plain", "nasa_i": "with NASA-I"}[row["measure"]]
        interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
        lines.append(
            f"| {row['title']} | {images} | {row['difference']:+.1f} | {interval} | {_join_values(row['seeds'], '+')} |"
        )
    return "\n".join(lines) + "\n"


def _join_values(values: list[float], sign: str = "") -> str:
    return ", ".join(f"{value:{sign}.1f}" for value in values)


def draw(summary: dict[str, Any], file: Path) -> None:
    """Plot the contrasts on plain images: the interval over prompts as a bar, each seed as a dot."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in summary["contrasts"] if row["measure"] == "plain"][::-1]
    figure, axis = pyplot.subplots(figsize=(9, 0.6 * len(rows) + 1.4))
    for height, row in enumerate(rows):
        axis.plot([row["low"], row["high"]], [height] * 2, color="tab:blue", linewidth=6, alpha=0.35)
        axis.plot(row["difference"], height, "|", color="tab:blue", markersize=16, markeredgewidth=2.5)
        axis.plot(row["seeds"], np.full(len(row["seeds"]), height), "o", color="black", markersize=4)
    axis.axvline(0, color="grey", linestyle=":")
    axis.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axis.set(xlabel="difference, points (bar: 95 % interval over prompts; dots: seeds)")
    axis.set_ylim(-0.6, len(rows) - 0.4)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
