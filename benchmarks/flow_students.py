"""One-step and few-step students of the flow-matching toy teachers, by SBv2* and by NASA-T, over paired seeds.

    python -m benchmarks.flow_teachers --teacher sana && python -m benchmarks.flow_teachers --teacher sd3
    python -m benchmarks.flow_students --settings                 # which settings of the recipe carry over, one seed
    python -m benchmarks.flow_students --seconds 75 --seeds 3     # the students; finished runs are kept
    python -m benchmarks.flow_students --recorded                 # table and figure of the recorded students
    python -m benchmarks.flow_students --recorded --settings      # table of the recorded settings

Every student is trained with the recipe `benchmarks/shapes.toml` and 2,048 pairs of its own teacher; those of the
second command, with the weights of the losses that did best in the first. The teachers are measured in 16 steps with
CFG; their negative prompt stands in the place of the null text (eq. 5).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from benchmarks.ablation.runs import SBV2
from benchmarks.convergence import FIRST_SEED, compare, format_range, train_student
from benchmarks.flow_teachers import BUILDERS
from benchmarks.toy_students import BASE, measure_diversity
from datasets_prep.shapes.prompts import sample_held_out_prompts, sample_prompts
from datasets_prep.shapes.scene import ATTRIBUTES
from pipeline import ROOT, models, recipe
from pipeline.evaluation import exclusion
from pipeline.evaluation.diversity import NUM_VALUES
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.prompts.teacher_pairs import PAIRS_PER_FILE, list_pair_files
from pipeline.training.pair_sampling import PairActor, PairConfig

STEPS = 1, 2, 4
METHODS = {"SBv2*": [f"method.{name}={str(value).lower()}" for name, value in SBV2.items()], "NASA-T": []}
UNIFORM = ["method.lora_loss_weighting=uniform"]
LOSSES = [*UNIFORM, "method.vsd_weighting=dmd"]
SETTINGS = {
    "as in the recipe": [],
    "LoRA loss uniform": UNIFORM,
    "LoRA loss uniform, DMD's weighting": LOSSES,
    "learning rate 1e-3": ["student.learning_rate=1e-3"],
    "no regression": ["regression.weight=0"],
    "no regression, both teachers guided": ["regression.weight=0", "method.lora_guidance=true"],
}
SCALES = 0.25, 0.5, 1.0
PROMPTS = 384
EXCLUSION_SEEDS = range(5_000_000, 5_000_000 + 64)
TEACHER = SamplingMethod("steps", 3.0, 16)
MEASURES = {"right": "right", "clean": "clean", "removed": "removed", "kept": "kept", "diversity": "diversity of shape"}
TITLES = {"sana": "SANA: cross-attention", "sd3": "Stable Diffusion 3: joint attention"}
DATA, IMAGE = ROOT / "docs/data/flow_students.json", ROOT / "docs/images/flow_students.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/flow"), help="folder of the teachers (%(default)s)")
    parser.add_argument("--teacher", choices=sorted(BUILDERS), action="append", help="only this teacher's students")
    parser.add_argument("--seconds", type=float, default=75.0, help="CPU seconds of training per student (%(default)g)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (%(default)s)")
    parser.add_argument("--out", type=Path, default=DATA, help="file of the finished runs")
    parser.add_argument("--image", type=Path, default=IMAGE, help="file of the figure")
    parser.add_argument("--settings", action="store_true", help="compare the settings in 60 s, with one seed")
    parser.add_argument("--recorded", action="store_true", help="train nothing; print the recorded runs")
    options = parser.parse_args()
    if options.recorded:
        rows = json.loads(options.out.read_text())
    else:
        rows = []
        for name in options.teacher or BUILDERS:
            folder = options.work / name
            make_pairs(folder)
            if options.settings:
                rows += compare(build_settings(folder), 1, 60.0, options.out, options.processes, run_student)
                continue
            rows += compare(build_teacher_lever(folder), 1, 0.0, options.out, 1, measure_teacher)
            levers = build_levers(folder)
            rows += compare(levers, options.seeds, options.seconds, options.out, options.processes, run_student)
    rows = [row for row in rows if is_setting(row) is options.settings]
    print(format_table(rows))
    if not options.settings:
        draw(rows, options.image)


def is_setting(row: dict[str, Any]) -> bool:
    """Tell whether a row is one of `build_settings`."""
    return any(row["lever"].endswith(f", {name}") for name in SETTINGS)


def build_teacher_lever(folder: Path) -> dict[str, list[str]]:
    return {f"{folder.name}: teacher, {TEACHER.steps} steps and CFG": [f"teacher={folder}"]}


def build_levers(folder: Path) -> dict[str, list[str]]:
    """Return the overrides of the recipe for each method and number of steps."""
    return {
        f"{folder.name}: {method}, {steps} step{'s' * (steps > 1)}": [
            *build_overrides(folder, steps), *LOSSES, *overrides,
        ]
        for steps in STEPS
        for method, overrides in METHODS.items()
    }  # fmt: skip


def build_settings(folder: Path) -> dict[str, list[str]]:
    """Return the overrides of the recipe for NASA-T in one step with each of the settings."""
    return {f"{folder.name}, {name}": [*build_overrides(folder, 1), *overrides] for name, overrides in SETTINGS.items()}


def build_overrides(folder: Path, steps: int) -> list[str]:
    pairs = f"regression.pairs={get_pairs_folder(folder)}"
    return [f"teacher={folder}", pairs, f"method.student_steps={steps}"]


def get_pairs_folder(teacher: Path) -> Path:
    return teacher.parent / f"{teacher.name}-pairs"


def make_pairs(teacher: Path, overrides: Sequence[str] = ()) -> None:
    """Sample the pairs of the recipe's regression from a teacher, those that are missing."""
    options = recipe.load(BASE, [f"teacher={teacher}", *overrides])
    folder, count = get_pairs_folder(teacher), options.regression.num_pairs
    folder.mkdir(parents=True, exist_ok=True)
    prompts = list(sample_prompts(count, 0))
    actor = PairActor(PairConfig(options, str(teacher), str(folder)))
    for number, name in enumerate(list_pair_files(count)):
        if not (folder / name).exists():
            first = number * PAIRS_PER_FILE
            texts = np.array([prompts[first : first + PAIRS_PER_FILE]], dtype=object)
            actor({"name": np.array([name]), "first": np.array([first]), "prompts": texts})


def run_student(name: str, overrides: list[str], seed: int, seconds: float) -> dict[str, Any]:
    """Train and measure one student."""
    judge = AttributeJudge.load()
    sampler, curve = train_student(overrides, seed, seconds, judge)
    samplings = [SamplingMethod("nasa", scale) for scale in SCALES]
    row = {"lever": name, "seed": seed, "seconds": seconds, "overrides": overrides, "curve": curve}
    return {**row, **measure(sampler, judge, samplings)}


def measure_teacher(name: str, overrides: list[str], seed: int, seconds: float) -> dict[str, Any]:
    """Measure a teacher, in the form of a student's row."""
    torch.set_num_threads(1)
    model = models.load(Path(overrides[0].removeprefix("teacher=")))
    measured = measure(TeacherSampler(model), AttributeJudge.load(), [TEACHER])
    row = {"lever": name, "seed": seed, "seconds": seconds, "overrides": overrides}
    return {**row, "curve": [{"clean_and_right": measured["clean_and_right"]}], **measured}


class TeacherSampler(Sampler):
    """Samples a teacher in its many steps; its plain images have the null text as the negative."""

    def sample(
        self,
        sampling: SamplingMethod,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negatives: Sequence[str] | None = None,
    ) -> Tensor:
        """Return images [B, 3, H, W] in about -1..1."""
        return super().sample(TEACHER, prompts, seeds, None if sampling.kind == "plain" else negatives)


def measure(sampler: Sampler, judge: AttributeJudge, samplings: Sequence[SamplingMethod]) -> dict[str, Any]:
    """Return the shares of held-out images that are right and clean, what a negative removes and keeps, diversity."""
    texts, scenes = zip(*sample_held_out_prompts(PROMPTS, FIRST_SEED), strict=True)
    shown = judge.classify_attributes(sampler.sample(SamplingMethod(), texts, range(FIRST_SEED, FIRST_SEED + PROMPTS)))
    right = [
        all(image[key] == getattr(scene, key) for key in ATTRIBUTES) for image, scene in zip(shown, scenes, strict=True)
    ]
    clean = [image["quality"] == "clean" for image in shown]
    trials = exclusion.run_trials(sampler, judge, samplings, EXCLUSION_SEEDS)
    trained = [trial for trial in trials if trial.pair.trained]
    return {
        "right": float(np.mean(right)),
        "clean": float(np.mean(clean)),
        "clean_and_right": float(np.mean(np.logical_and(right, clean))),
        "exclusion": [{"scale": s.scale, **exclusion.compute_method_shares(trained, s)} for s in samplings],
        "diversity": measure_diversity(sampler, judge),
    }


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with medians over seeds, and the range of the share right and of the share clean."""
    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    header = f"| student | seeds | right, % | clean, % | removed, % at {scales} | kept, % at {scales} | diversity: "
    lines = [header + f"{', '.join(NUM_VALUES)} |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["lever"] for row in rows):
        group = [row for row in rows if row["lever"] == name]
        cells = [format_range([100 * row[share] for row in group], "{:.0f}") for share in ("right", "clean")]
        cells += [", ".join(f"{value:.0f}" for value in get_shares(group, share)) for share in ("removed", "kept")]
        cells += [", ".join(f"{np.median([row['diversity'][key] for row in group]):.2f}" for key in NUM_VALUES)]
        lines.append(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def get_shares(group: Sequence[dict[str, Any]], share: str) -> list[float]:
    """Return the median over seeds of a share of the exclusion test, in percent, at every scale."""
    by_scale = zip(*(row["exclusion"] for row in group), strict=True)
    return [100 * float(np.median([shares[share] for shares in seeds])) for seeds in by_scale]


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot every measure by the number of steps, a row of plots per teacher: a point per seed, and the teacher."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    teachers = [name for name in BUILDERS if any(row["lever"].startswith(f"{name}:") for row in rows)]
    figure, grid = pyplot.subplots(
        len(teachers), len(MEASURES), figsize=(15, 3.4 * len(teachers)), sharex=True, squeeze=False
    )
    for name, axes in zip(teachers, grid, strict=True):
        own = [row for row in rows if row["lever"].startswith(f"{name}:")]
        axes[0].set_ylabel(f"{TITLES[name]}\n%")
        for axis, (measure_name, title) in zip(axes, MEASURES.items(), strict=True):
            plot_measure(axis, own, measure_name)
            axis.set(title=title, ylim=(-3, 103), xticks=range(len(STEPS)), xticklabels=STEPS)
    for axis in grid[-1]:
        axis.set_xlabel("steps")
    grid[0][0].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"Students of flow-matching teachers on the Shapes toy dataset; NASA scale {SCALES[1]:g}")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def plot_measure(axis: Any, rows: Sequence[dict[str, Any]], name: str) -> None:
    for method, marker, offset in zip(METHODS, "os", (-0.08, 0.08), strict=True):
        points = [
            (index + offset, get_measure(row, name))
            for index, steps in enumerate(STEPS)
            for row in rows
            if row["lever"].endswith(f": {method}, {steps} step{'s' * (steps > 1)}")
        ]
        axis.plot(*zip(*points, strict=True), marker, label=method, alpha=0.8)
    for row in rows:
        if "teacher," in row["lever"]:
            axis.axhline(
                get_measure(row, name), color="grey", linestyle=":", label=f"teacher, {TEACHER.steps} steps, CFG"
            )


def get_measure(row: dict[str, Any], name: str) -> float:
    """Return a measure of a row, in percent; of the exclusion test, at the scale in the middle."""
    if name == "diversity":
        return 100 * float(row["diversity"]["shape"])
    if name in row:
        return 100 * float(row[name])
    return 100 * float(row["exclusion"][min(1, len(row["exclusion"]) - 1)][name])


if __name__ == "__main__":
    main()
