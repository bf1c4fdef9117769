"""The ablation's table and figure, from the rows of its runs."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.ablation.runs import Plan, count_needed_seeds

DATA, IMAGE, PAGE = Path("data/ablation.json"), Path("images/ablation.png"), Path("ablation.md")
TITLES = {"plain": "plain images", "nasa_i": "with NASA-I", "removed": "removed", "kept": "kept"}
BEGIN, END = "<!-- table: written by `python -m benchmarks.ablation` -->", "<!-- end of the table -->"


def write(summary: dict[str, Any], plan: Plan, folder: Path) -> str:
    """Write data, figure and page under `folder`, and return the table."""
    for file in (DATA, IMAGE, PAGE):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / DATA).write_text(json.dumps({**plan.identity, **summary}, indent=1) + "\n")
    return write_page(summary, folder)


def write_page(summary: dict[str, Any], folder: Path) -> str:
    """Write figure and page under `folder` and return the table; only the table of an existing page changes."""
    text = format_table(summary)
    draw(summary, folder / IMAGE)
    page = folder / PAGE
    before, _, rest = (page.read_text() if page.is_file() else f"{BEGIN}\n{END}\n").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    return text


def format_table(summary: dict[str, Any]) -> str:
    """Return Markdown: each variant's shares and diversity, in percent, then the contrasts in points."""
    names = list(summary["table"][0]["diversity"]) if summary["table"] else []
    lines = [
        f"{len(summary['seeds'])} seeds, {summary['cpu_hours']:.1f} CPU hours. Means over seeds, and their range.",
        "",
        "| training loop | negative prompt in training on | clean and right, % | with NASA-I, % | removed, % | kept, % "
        f"| diversity: {', '.join(names)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary["table"]:
        cells = [_format_spread(row[name]) for name in ("plain", "nasa_i")]
        cells += [f"{row[name]['mean']:.1f}" for name in ("removed", "kept")]
        cells.append(", ".join(f"{row['diversity'][name]['mean']:.2f}" for name in names))
        lines.append(f"| {row['loop']} | {row['title']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| training loop | contrast | measure | difference, points | 95 % interval over seeds | verdict "
        "| seeds it takes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary["contrasts"]:
        interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
        cells = [row["loop"], row["title"], TITLES[row["measure"]], f"{row['difference']:+.1f}", interval]
        needed = f"{count_needed_seeds(row['seeds']):,}" if row["verdict"] == "open" else ""
        lines.append(f"| {' | '.join(cells)} | {row['verdict']} | {needed} |")
    return "\n".join(lines) + "\n"


def _format_spread(values: dict[str, Any]) -> str:
    return f"{values['mean']:.1f} ({min(values['seeds']):.1f} to {max(values['seeds']):.1f})"


def draw(summary: dict[str, Any], file: Path) -> None:
    """Plot the contrasts on plain images: the interval over seeds as a bar, each seed as a dot."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in summary["contrasts"] if row["measure"] == "plain"][::-1]
    figure, axis = pyplot.subplots(figsize=(9, 0.6 * len(rows) + 1.4))
    for height, row in enumerate(rows):
        axis.plot([row["low"], row["high"]], [height] * 2, color="tab:blue", linewidth=6, alpha=0.35)
        axis.plot(row["difference"], height, "|", color="tab:blue", markersize=16, markeredgewidth=2.5)
        axis.plot(row["seeds"], np.full(len(row["seeds"]), height), "o", color="black", markersize=4)
    axis.axvline(0, color="grey", linestyle=":")
    axis.set_yticks(range(len(rows)), [f"{row['title']}\n({row['loop']})" for row in rows])
    axis.set(xlabel="difference in clean and right, points (bar: 95 % interval over seeds; dots: seeds)")
    axis.set_ylim(-0.6, len(rows) - 0.4)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
