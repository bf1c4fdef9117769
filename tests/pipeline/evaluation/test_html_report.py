import io
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datasets_prep.shapes.prompts import PAIRS
from pipeline.evaluation import aggregate
from pipeline.evaluation.contact_sheet import draw_contact_sheet
from pipeline.evaluation.html_report import format_metric, format_share, write_report
from pipeline.evaluation.image_store import ImageStore
from pipeline.evaluation.results import EvaluationRow, read_rows, read_summary, write_rows
from pipeline.evaluation.statistics import Difference, Share, estimate_mean
from pipeline.recipe import Recipe
from pipeline.storage import Folder

ATTACK = "</script><script>alert('&')</script>"
METHODS = ("no negative", "NASA 0.25", "NASA 0.5", "CFG 2")
SHOWN = {"shape": "star", "colour": "blue", "background": "white", "quality": "clean"}
EXPECTED = {"shape": "star", "colour": "red", "background": "white"}


def encode_png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def build_rows(judged, count=5):
    systems = ("student", "student, NASA 0.5", "teacher, 1 step")
    rows = [
        EvaluationRow(
            system, "held-out", f"{ATTACK} {i}", ATTACK, i, index=i, images="all", scores={"clip": float(i)},
            expected=EXPECTED if judged else {}, shown=SHOWN if judged else {},
        )
        for system in systems
        for i in range(count)
    ]  # fmt: skip
    pair = PAIRS[0]
    return rows + [
        EvaluationRow(
            method, "exclusion", pair.prompt, pair.negative_prompt, seed, images="all", selects_scale=seed < 2,
            selected=True, shown=SHOWN,
        )
        for seed in range(4 if judged else 0)
        for method in METHODS
        if seed >= 2 or "CFG" not in method
    ]  # fmt: skip


def build_evaluation(rows, folder, options, **recipe):
    folder = Folder.from_uri(folder)
    images = [row.to_columns() | {"image": encode_png(5 * number)} for number, row in enumerate(rows)]
    (folder / "images").write_table("all.parquet", pa.Table.from_pylist(images))
    rows = [aggregate.add_judged_metrics(row) for row in rows]
    recipe = Recipe().model_copy(update=recipe)
    return recipe, aggregate.summarise(recipe, rows, options), rows, ImageStore(folder, rows)


@pytest.fixture(params=[False, True], ids=["not judged", "judged"])
def evaluated(request, tmp_path):
    """Return recipe, summary, rows and images of an evaluation in which each image has one colour."""
    return build_evaluation(build_rows(request.param), tmp_path, {"clip": {"version": 3}}, name=ATTACK)


def test_the_page_escapes_every_text(evaluated):
    html = write_report(*evaluated)
    assert html.count("<script") == 2  # the data and the script
    assert "alert('" not in html
    assert html.count("&lt;script&gt;") >= 2


def test_the_page_is_self_contained(evaluated):
    html = write_report(*evaluated)
    assert not re.search(r"https?:|url\(|@import|<link|href=", html)


def test_the_page_holds_every_image_of_the_student(evaluated):
    _, summary, _, _ = evaluated
    data = json.loads(re.search(r'id="data">(.*?)</script>', write_report(*evaluated), re.S).group(1))
    assert [card["prompt"] for card in data["cards"]] == [f"{ATTACK} {i}" for i in range(5)]
    assert len({card["pictures"][0]["image"] for card in data["cards"]}) == 5
    assert all(card["pictures"][0]["image"].startswith("data:image/webp;base64,") for card in data["cards"])
    methods = [method["label"] for method in data["columns"][0]["methods"]]
    assert methods == (list(METHODS) if summary.exclusion else ["student", "student, NASA 0.5"])
    assert len(data["columns"]) == (2 if summary.exclusion else 5)
    images = {method["pictures"][0]["image"] for column in data["columns"] for method in column["methods"]}
    assert len(images) == len(methods) * len(data["columns"])


def test_the_summary_has_each_metric_with_its_interval_and_options(evaluated):
    _, summary, _, _ = evaluated
    clip = summary.metrics["clip"]
    assert (clip.value, clip.images, clip.options) == (2.0, 5, {"version": 3})
    assert clip.low == pytest.approx(2 - 1.96 * np.std(range(5), ddof=1) / np.sqrt(5), abs=1e-3)
    if not summary.exclusion:
        return
    assert summary.metrics["clean"].value == 1.0
    assert summary.metrics["all_right"].value == 0.0  # the colour is wrong
    assert summary.metrics["exclusion_removed"].images == 2
    assert summary.metrics["exclusion_removed"].value == 1.0  # blue is not red
    assert summary.student_minus_teacher_one_step == Difference(difference=0.0, low=0.0, high=0.0, count=5)


def test_the_sheet_has_a_row_for_each_method(evaluated):
    _, summary, _, images = evaluated
    pixels = np.asarray(images.draw_sheet(summary))
    rows = 3 if summary.exclusion else 2  # with exclusion: plain, guidance, the chosen scale
    assert pixels.shape[0] > rows * 16
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}
    compared = [row for column in images.select_side_by_side(summary) for row in column]
    chosen = summary.chosen_sampling_method
    expected = [row for row in compared if not chosen or row.system in (METHODS[0], chosen, "CFG 2")]
    assert all(tuple(images.read_pixels(row)[0, 0].tolist()) in colours for row in expected)


def test_a_value_without_images_says_so():
    assert format_share(Share(0, 0)) == "no images"
    assert format_metric(estimate_mean([])) == "no images"


def test_a_contact_sheet_shows_every_image():
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    rows = [("a long label of one row", np.full((3, 8, 8, 3), 200, dtype=np.uint8)), ("b", images)]
    pixels = np.asarray(draw_contact_sheet(rows, ["one two three four", "x", "y"]))
    assert (pixels == 200).all(axis=-1).sum() >= 3 * 16 * 16
    assert (pixels == 0).all(axis=-1).sum() >= 2 * 16 * 16


def test_a_report_without_a_metric_has_no_empty_table_and_nothing_to_sort_by(tmp_path):
    page = write_report(*build_evaluation([replace(row, scores={}) for row in build_rows(False)], tmp_path, {}))
    assert 'id="systems"' not in page
    assert "No scores: the recipe has no" in page
    assert page.count("<label hidden>") == 2


def test_rows_and_summary_round_trip(evaluated, tmp_path):
    _, summary, rows, _ = evaluated
    folder = Folder.from_uri(tmp_path / "again")
    write_rows(folder, rows)
    folder.write_json("summary.json", summary.to_dict())
    assert read_rows(folder) == rows
    assert read_summary(folder) == summary
