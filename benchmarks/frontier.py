"""The frontier of accuracy and variety: one student per lever of the method, seed by seed, in the same CPU seconds.

    python -m benchmarks.frontier --seconds 60 --seeds 1     # finished runs are kept
    python -m benchmarks.frontier --recorded                 # table and figure of the recorded runs

Each lever changes one thing of `benchmarks/shapes.toml`, the recipe with the method's own losses, or of another lever.
The students are trained and judged as by `benchmarks.convergence`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.convergence import HUBER_LEVERS, compare, format_table
from pipeline import ROOT

LEVERS = {
    "VSD and squared regression, weight 0.3": [],
    "regression weight 0.1": ["regression.weight=0.1"],
    "regression weight 1": ["regression.weight=1"],
    "VSD alone": ["regression.weight=0"],
    "first 20 steps on pairs alone": ["regression.start_steps=20"],
    "k from 1.5 to 3": ["method.guidance_range=[1.5, 3.0]"],
    "schedules of 80 steps": ["train.steps=80"],
    "k annealed to 1 to 2 in 80 steps": ["train.steps=80", "method.final_guidance_range=[1.0, 2.0]"],
    "pseudo-Huber distance of VSD": ["method.vsd_distance=pseudo_huber"],
    "DMD's weighting": ["method.vsd_weighting=dmd"],
    "cold start of 30 steps": ["method.cold_start_steps=30"],
    "LoRA warm-up of 10 steps": ["lora_teacher.warm_up_steps=10"],
    "LoRA on feed-forward too": [
        'lora_teacher.target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]'
    ],
    **HUBER_LEVERS,
}
DATA, IMAGE = ROOT / "docs/data/frontier.json", ROOT / "docs/images/frontier.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of training per run (%(default)g)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (%(default)s)")
    parser.add_argument("--out", type=Path, default=DATA, help="file of the finished runs")
    parser.add_argument("--image", type=Path, default=IMAGE, help="file of the figure")
    parser.add_argument("--recorded", action="store_true", help="train nothing; print and plot the recorded runs")
    options = parser.parse_args()
    if options.recorded:
        rows = json.loads(options.out.read_text())
    else:
        rows = compare(LEVERS, options.seeds, options.seconds, options.out, options.processes)
    print(format_table(rows))
    draw(rows, options.image)


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot accuracy against the diversity of shapes: a dot per student, and a number at each lever's median."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 5.5))
    names = list(dict.fromkeys(row["lever"] for row in rows))
    colours = pyplot.get_cmap("tab20")(np.linspace(0, 1, len(names)))
    for number, (name, colour) in enumerate(zip(names, colours, strict=True), 1):
        points = np.array([locate(row) for row in rows if row["lever"] == name])
        axis.plot(*points.T, "o", color=colour, alpha=0.5, markersize=5)
        axis.annotate(
            str(number), np.median(points, axis=0), ha="center", va="center", fontsize=9,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "black", "linewidth": 0.5},
        )  # fmt: skip
        axis.plot([], [], "o", color=colour, label=f"{number}  {name}")
    axis.set(xlabel='diversity of shapes over 256 seeds of "a photo of a shape"', ylabel="clean and right, %")
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def locate(row: dict[str, Any]) -> tuple[float, float]:
    """Return the diversity of shapes, in 0..1, and the share clean and right, in percent."""
    return float(row["diversity"]["shape"]), 100 * float(row["curve"][-1]["clean_and_right"])


if __name__ == "__main__":
    main()
