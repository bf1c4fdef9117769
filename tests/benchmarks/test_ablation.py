"""The ablation: its variants, one small run, continuing, and how its figures are put together."""

import json

import numpy as np
import pytest

from benchmarks.ablation import runs
from benchmarks.ablation.report import BEGIN, END, table, write
from benchmarks.ablation.runs import VARIANTS, Plan, contrast, summarise
from nasa.method import Method
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
            getattr(variant.method(Method()), f"negative_on_{place}")
            for place in ("student", "teacher", "lora_teacher")
        )
        for variant in VARIANTS
    }
    assert switches["none"] == (False, False, False)
    assert switches["teacher"] == (False, True, False)
    assert switches["teachers"] == (False, True, True)
    assert switches["nasa-t"] == (True, True, False)
    assert switches["all"] == (True, True, True)
    fixed = next(variant for variant in VARIANTS if variant.name == "nasa-t-fixed-k").method(Method())
    assert fixed.guidance_range == (2.25, 2.25)


def test_a_run_goes_on_from_the_warm_start_and_is_kept(plan):
    runs.warm_up(plan)
    variant = VARIANTS[3]
    row = runs.run(plan, variant, 5)
    assert (row["variant"], row["seed"]) == ("nasa-t", 5)
    assert len(row["plain"]) == len(row["nasa_i"]) == 6
    assert set(row["plain"]) | set(row["nasa_i"]) | set(row["removed"]) | set(row["kept"]) <= {0, 1}
    for other in VARIANTS:
        kept = {**row, "variant": other.name, "seed": 0}
        runs.Folder.from_uri(plan.folder).write(f"rows/{other.name}-0.json", json.dumps(kept).encode())
    rows = runs.ablate(plan, [0], processes=1)
    assert [row["variant"] for row in rows] == [variant.name for variant in VARIANTS]
    assert rows[0]["plain"] == row["plain"]


def rows():
    """Two seeds; NASA-T is right where SBv2* is, and for two prompts more."""
    made = []
    for seed in (0, 1):
        for variant in VARIANTS:
            plain = [1] * (6 if variant.name.startswith("nasa-t") else 4 + seed) + [0] * 6
            made.append({"variant": variant.name, "seed": seed, "plain": plain[:10], "nasa_i": plain[:10],
                         "removed": [1, 0], "kept": [1, 1]})  # fmt: skip
    return made


def test_seeds_and_prompts_are_told_apart():
    found = summarise(rows())
    nasa_t = next(row for row in found["table"] if row["variant"] == "nasa-t")
    none = next(row for row in found["table"] if row["variant"] == "none")
    assert (nasa_t["plain"]["mean"], none["plain"]["seeds"]) == (60.0, [40.0, 50.0])
    first = found["contrasts"][0]
    assert first["title"] == "NASA-T against SBv2*"
    assert first["seeds"] == pytest.approx([20.0, 10.0])
    assert first["difference"] == pytest.approx(15.0)
    assert first["low"] < 15 < first["high"]


def test_prompts_that_all_agree_leave_no_interval():
    same = {("a", 0): {"plain": [1] * 8}, ("b", 0): {"plain": [0] * 8}}
    found = contrast(same, [0], "a", "b", "plain")
    assert (found["difference"], found["low"], found["high"]) == (100.0, 100.0, 100.0)


def test_an_unfinished_variant_is_in_no_table():
    found = summarise([row for row in rows() if (row["variant"], row["seed"]) != ("all", 1)])
    assert "all" not in {row["variant"] for row in found["table"]}
    assert all("LoRA teacher against not" not in row["title"] for row in found["contrasts"])


def test_the_page_keeps_all_but_its_table(plan, tmp_path):
    page = tmp_path / "ablation.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    text = write(summarise(rows()), plan, tmp_path)
    assert text == table(summarise(rows()))
    assert "| NASA-T against SBv2* | plain | +15.0 |" in text
    assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n{END}\nafter\n"
    assert (tmp_path / "images/ablation.png").stat().st_size > 5_000
    assert json.loads((tmp_path / "data/ablation.json").read_text())["steps"] == 2
    assert np.isclose(json.loads((tmp_path / "data/ablation.json").read_text())["contrasts"][0]["difference"], 15)
