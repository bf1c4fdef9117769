"""Attention rules and CFG on the same one-step students and seeds: what each removes and what it keeps.

    python -m benchmarks.rules runs/seed0/distilled runs/seed1/distilled runs/seed2/distilled

The command writes docs/data/rules.json and docs/images/rules.png, and prints the means as a table. Without a folder it
plots and prints the recorded data.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from pipeline import manifest
from pipeline.evaluation.evaluate import load_distilled_student
from pipeline.evaluation.exclusion import compute_method_shares, run_trials
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import SamplingMethod
from pipeline.storage import Folder

SCALES = {
    "nasa": (0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
    "nag": (1.0, 2.0, 4.0, 8.0, 16.0),
    "vsf": (0.5, 1.0, 2.0, 3.0, 4.0),
    "cfg": (1.25, 1.5, 2.0, 3.0, 4.0),
}
NAMES = {"nasa": "NASA", "nag": "NAG", "vsf": "VSF", "cfg": "CFG (output space)"}
MARKERS = {"nasa": "o", "nag": "s", "vsf": "^", "cfg": "D"}
FIRST_SEED, SEEDS = 9_000_000, 192
DATA, IMAGE = Path("docs/data/rules.json"), Path("docs/images/rules.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "distilled", nargs="*", type=Path, help="folders of distilled students; none plots the recorded data"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="images of each pair of prompt and negative prompt")
    options = parser.parse_args()
    if options.distilled:
        DATA.parent.mkdir(parents=True, exist_ok=True)
        measured = [measure(folder, options.seeds) for folder in options.distilled]
        DATA.write_text(json.dumps(measured, indent=1) + "\n")
    students = json.loads(DATA.read_text())
    print(format_table(students))
    draw(students)


def measure(folder: Path, seeds: int = SEEDS) -> dict[str, Any]:
    """Return the shares of each method over the seeds whose plain image shows what the negative prompt names."""
    record = manifest.read(Folder.from_uri(folder), manifest.DistilledManifest)
    recipe, student = record.recipe, load_distilled_student(Folder.from_uri(folder))
    samplings = [SamplingMethod(kind, scale) for kind, scales in SCALES.items() for scale in scales]
    seed_range = range(FIRST_SEED, FIRST_SEED + seeds)
    collected = run_trials(student, AttributeJudge.load(), samplings, seed_range, selects_scale=False)
    return {
        "student": record.student_sha256,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "plain": compute_method_shares(collected, SamplingMethod()),
        "rows": [
            {"way": each.kind, "scale": each.scale, **compute_method_shares(collected, each)} for each in samplings
        ],
    }


def format_table(students: list[dict[str, Any]]) -> str:
    """Return Markdown: each method's mean over the students, with the lowest and the highest."""
    lines = ["| method | scale | removed, % | prompted attributes kept, % | clean, % |", "|---|---|---|---|---|"]
    clean = [student["plain"]["clean"] for student in students]
    lines.append(f"| none | | 0 | 100 | {_format_spread(clean)} |")
    for rows in zip(*(student["rows"] for student in students), strict=True):
        name = rows[0]["way"].upper()
        cells = (_format_spread([row[key] for row in rows]) for key in ("removed", "kept", "clean"))
        lines.append(f"| {name} | {rows[0]['scale']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_spread(shares: list[float]) -> str:
    return f"{100 * float(np.mean(shares)):.0f} ({100 * min(shares):.0f} to {100 * max(shares):.0f})"


def draw(students: list[dict[str, Any]]) -> None:
    """Plot removed against kept and against clean: a line per method, and a thin line per student."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharex=True)
    for axis, name in zip(axes, ("kept", "clean"), strict=True):
        for kind in SCALES:
            table = [[row for row in student["rows"] if row["way"] == kind] for student in students]
            x, y = (100 * np.array([[row[key] for row in rows] for rows in table]) for key in ("removed", name))
            (line,) = axis.plot(x.mean(0), y.mean(0), marker=MARKERS[kind], label=NAMES[kind], linewidth=2)
            for points in zip(x, y, strict=True):
                axis.plot(*points, color=line.get_color(), alpha=0.35, linewidth=0.8)
        plain = 100 * float(np.mean([student["plain"][name] for student in students]))
        axis.axhline(plain, color="grey", linestyle=":", label="no negative")
        axis.set(xlabel="removed, %", xlim=(-2, 102), ylim=(-2, 104))
    axes[0].set(ylabel="prompted attributes kept, %")
    axes[1].set(ylabel="clean image, %")
    axes[0].legend(loc="lower left")
    figure.suptitle(f"Shapes toy dataset, one step, {len(students)} students; scales increase to the right")
    figure.tight_layout()
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    main()
