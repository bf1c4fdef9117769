"""The ablation: its variants, a small run, resuming, and the aggregation of its rows."""

import json

import numpy as np
import pytest

from benchmarks.ablation import runs
from benchmarks.ablation.report import BEGIN, END, format_table, write
from benchmarks.ablation.runs import VARIANTS, Plan, compute_contrast, summarise
from nasa.method_options import MethodOptions
from pipeline import recipe

TINY = [
    "train.num_workers=1",
    "train.batch_size=2",
    "prompts.count=20",
    "prompts.negative_draws=20",
    "train.clip_images=1",
]
TINY += ["evaluation.num_prompts=6", "evaluation.exclusion_seeds=6"]


@pytest.fixture
def plan(tmp_path):
    return Plan(recipe.load("shapes", TINY), warm_up_steps=1, steps=2, folder=str(tmp_path), threads=1)


def test_the_variants_are_the_rows_of_table_5():
    switches = {
        variant.name: tuple(
            getattr(variant.method(MethodOptions()), f"negative_on_{model}")
            for model in ("student", "teacher", "lora_teacher")
        )
        for variant in VARIANTS
    }
    assert switches["none"] == (False, False, False)
    assert switches["teacher"] == (False, True, False)
    assert switches["teachers"] == (False, True, True)
    assert switches["nasa-t"] == (True, True, False)
    assert switches["all"] == (True, True, True)
    fixed = next(variant for variant in VARIANTS if variant.name == "nasa-t-fixed-k").method(MethodOptions())
    assert fixed.guidance_range == (2.25, 2.25)


def test_a_run_starts_from_the_warm_start_and_its_row_is_reused(plan):
    runs.warm_up(plan)
    variant = VARIANTS[3]
    row = runs.run(plan, variant, 5)
    assert (row["variant"], row["seed"]) == ("nasa-t", 5)
    assert len(row["plain"]) == len(row["nasa_i"]) == 6
    assert set(row["plain"]) | set(row["nasa_i"]) | set(row["removed"]) | set(row["kept"]) <= {0, 1}
    for other in VARIANTS:
        recorded = {**row, "variant": other.name, "seed": 0}
        runs.Folder.from_uri(plan.folder).write(f"rows/{other.name}-0.json", json.dumps(recorded).encode())
    rows = runs.ablate(plan, [0], processes=1)
    assert [row["variant"] for row in rows] == [variant.name for variant in VARIANTS]
    assert rows[0]["plain"] == row["plain"]


def build_rows():
    """Return rows of two seeds; NASA-T is right where SBv2* is, and for two more prompts."""
    all_rows = []
    for seed in (0, 1):
        for variant in VARIANTS:
            plain = [1] * (6 if variant.name.startswith("nasa-t") else 4 + seed) + [0] * 6
            all_rows.append({"variant": variant.name, "seed": seed, "plain": plain[:10], "nasa_i": plain[:10],
                         "removed": [1, 0], "kept": [1, 1]})  # fmt: skip
    return all_rows


def test_variation_over_seeds_and_over_prompts_is_reported_separately():
    summary = summarise(build_rows())
    nasa_t = next(row for row in summary["table"] if row["variant"] == "nasa-t")
    none = next(row for row in summary["table"] if row["variant"] == "none")
    assert (nasa_t["plain"]["mean"], none["plain"]["seeds"]) == (60.0, [40.0, 50.0])
    first = summary["contrasts"][0]
    assert first["title"] == "NASA-T vs. SBv2*"
    assert first["seeds"] == pytest.approx([20.0, 10.0])
    assert first["difference"] == pytest.approx(15.0)
    assert first["low"] < 15 < first["high"]


def test_the_interval_has_no_width_if_all_prompts_agree():
    outcomes = {("a", 0): {"plain": [1] * 8}, ("b", 0): {"plain": [0] * 8}}
    result = compute_contrast(outcomes, [0], "a", "b", "plain")
    assert (result["difference"], result["low"], result["high"]) == (100.0, 100.0, 100.0)


def test_an_unfinished_variant_is_left_out():
    summary = summarise([row for row in build_rows() if (row["variant"], row["seed"]) != ("all", 1)])
    assert "all" not in {row["variant"] for row in summary["table"]}
    assert "NASA-T: with vs. without LoRA teacher" not in {row["title"] for row in summary["contrasts"]}


def test_only_the_table_of_the_page_changes(plan, tmp_path):
    page = tmp_path / "ablation.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    text = write(summarise(build_rows()), plan, tmp_path)
    assert text == format_table(summarise(build_rows()))
    assert "| NASA-T vs. SBv2* | plain | +15.0 |" in text
    assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n{END}\nafter\n"
    assert (tmp_path / "images/ablation.png").stat().st_size > 5_000
    assert json.loads((tmp_path / "data/ablation.json").read_text())["steps"] == 2
    assert np.isclose(json.loads((tmp_path / "data/ablation.json").read_text())["contrasts"][0]["difference"], 15)
