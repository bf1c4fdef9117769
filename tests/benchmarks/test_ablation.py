"""The ablation: its variants and training loops, a small run, resuming, and the aggregation of its rows."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks.ablation import runs
from benchmarks.ablation.report import BEGIN, END, format_table, write
from benchmarks.ablation.runs import (
    ALL,
    LOOPS,
    NASA_T,
    NONE,
    RUNS,
    TEACHER,
    Plan,
    compute_contrast,
    count_needed_seeds,
    summarise,
)
from pipeline import recipe

TINY = [
    "train.num_workers=1",
    "train.batch_size=2",
    "prompts.count=20",
    "prompts.negative_draws=20",
    "train.clip_images=1",
]
TINY += ["evaluation.num_prompts=6", "evaluation.exclusion_seeds=6"]
BY_NAME = {loop.name: loop for loop in LOOPS}


@pytest.fixture
def plan(tmp_path):
    return Plan(recipe.load("shapes", TINY), warm_up_steps=1, steps=2, folder=str(tmp_path), threads=1)


@pytest.mark.parametrize(
    ("variant", "switches"),
    [(NONE, (False,) * 3), (TEACHER, (False, True, False)), (NASA_T, (True, True, False)), (ALL, (True,) * 3)],
)
def test_the_variants_are_the_rows_of_table_5(variant, switches):
    method = LOOPS[0].configure(recipe.load("shapes"), variant, 5).method
    assert tuple(getattr(method, f"negative_on_{part}") for part in ("student", "teacher", "lora_teacher")) == switches


@pytest.mark.parametrize(
    ("name", "guided", "weight"),
    [("guided", True, 0), ("unguided", False, 0), ("warm", False, 0), ("regression", False, 0.3)],
)
def test_a_loop_sets_the_guidance_the_regression_and_the_steps_of_the_clip_loss(name, guided, weight):
    options = BY_NAME[name].configure(recipe.load("shapes"), NASA_T, 7)
    assert (options.method.lora_guidance, options.regression.weight, options.train.steps) == (guided, weight, 7)


def test_a_run_starts_from_its_loop_s_start_and_its_row_is_reused(plan):
    loop = BY_NAME["warm"]
    runs.warm_up(plan, loop)
    row = runs.run(plan, loop, NASA_T, 5)
    assert (row["loop"], row["variant"], row["seed"]) == ("warm", "nasa-t", 5)
    assert len(row["plain"]) == len(row["nasa_i"]) == 6
    assert set(row["plain"]) | set(row["nasa_i"]) | set(row["removed"]) | set(row["kept"]) <= {0, 1}
    assert set(row["diversity"]) == {"shape", "colour", "background"}
    for other, variant in RUNS:
        recorded = {**row, "loop": other.name, "variant": variant.name, "seed": 0}
        file = f"rows/{other.name}-{variant.name}-0.json"
        runs.Folder.from_uri(plan.folder).write(file, json.dumps(recorded).encode())
    rows = runs.ablate(plan, [0], processes=1)
    assert [(row["loop"], row["variant"]) for row in rows] == [(loop.name, variant.name) for loop, variant in RUNS]
    assert rows[0]["plain"] == row["plain"]


def build_rows(seeds=(0, 1)):
    """Return rows in which NASA-T is right for two or one more of ten prompts than the others."""
    return [
        {
            "loop": loop.name,
            "variant": variant.name,
            "seed": seed,
            "plain": ([1] * (6 if variant is NASA_T else 4 + seed) + [0] * 10)[:10],
            "nasa_i": [1, 0],
            "removed": [1, 0],
            "kept": [1, 1],
            "diversity": {"shape": 0.5 + 0.1 * seed},
            "cpu_seconds": 1800.0,
        }
        for seed in seeds
        for loop, variant in RUNS
    ]


def find(rows, **wanted):
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))


def test_the_interval_is_student_s_over_the_seeds():
    summary = summarise(build_rows())
    assert summary["cpu_hours"] == pytest.approx(0.5 * 2 * len(RUNS))
    title = LOOPS[0].title
    assert find(summary["table"], loop=title, title=NASA_T.title)["plain"]["mean"] == 60.0
    none = find(summary["table"], loop=title, title=NONE.title)
    assert none["plain"]["seeds"] == [40.0, 50.0]
    assert none["diversity"]["shape"]["mean"] == pytest.approx(0.55)
    contrast = find(summary["contrasts"], loop=title, title="NASA-T vs. SBv2*", measure="plain")
    assert contrast["seeds"] == pytest.approx([20.0, 10.0])
    low, high = stats.t.interval(0.95, 1, loc=15, scale=np.std([20, 10], ddof=1) / np.sqrt(2))
    assert (contrast["low"], contrast["high"]) == pytest.approx((low, high))
    assert contrast["verdict"] == "open"


@pytest.mark.parametrize(
    ("better", "verdict"),
    [([9, 9, 9], "different"), ([5, 5, 5], "equal"), ([1, 9, 5], "open"), ([1, 1, 1], "different")],
)
def test_a_contrast_is_different_equal_or_open(better, verdict):
    outcomes = {}
    for seed, count in enumerate(better):
        for name, right in (("nasa-t", count), ("none", 5)):
            outcomes["guided", name, seed] = {"plain": [1] * right + [0] * (10 - right)}
    result = compute_contrast(outcomes, range(3), LOOPS[0], NASA_T, NONE, "plain")
    assert result["verdict"] == verdict


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [
        (5.0, 1.0, 3),  # t(2) 1 / sqrt(3) = 2.5 < 5; two seeds: 9.0
        (0.0, 1.0, 4),  # t(3) 1 / sqrt(4) = 1.6 < 2; three seeds: 2.5
        (1.0, 10.0, 387),  # 1.966 * 10 / sqrt(387) = 0.9994
    ],
)
def test_the_seeds_that_end_a_contrast_follow_from_its_mean_and_spread(mean, spread, expected):
    differences = [mean - spread / 2**0.5, mean + spread / 2**0.5]
    assert count_needed_seeds(differences) == expected


def test_a_seed_counts_only_if_all_its_runs_are_finished():
    rows = [row for row in build_rows((0, 1, 2)) if (row["loop"], row["variant"], row["seed"]) != ("guided", "all", 2)]
    assert summarise(rows)["seeds"] == [0, 1]


def test_only_the_table_of_the_page_changes(plan, tmp_path):
    page = tmp_path / "ablation.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    text = write(summarise(build_rows()), plan, tmp_path)
    assert text == format_table(summarise(build_rows()))
    assert "| LoRA teacher guided by k | NASA-T vs. SBv2* | plain images | +15.0 |" in text
    assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n{END}\nafter\n"
    assert (tmp_path / "images/ablation.png").stat().st_size > 5_000
    recorded = json.loads((tmp_path / "data/ablation.json").read_text())
    assert recorded["steps"] == 2
    assert np.isclose(recorded["contrasts"][0]["difference"], 15)
