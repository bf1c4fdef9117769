import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets_prep.shapes.prompts import PAIRS
from pipeline.evaluation import aggregate
from pipeline.evaluation.contact_sheet import contact_sheet
from pipeline.evaluation.images import ImageStore
from pipeline.evaluation.report import figure, percent, write_report
from pipeline.evaluation.statistics import Share
from pipeline.recipe import Recipe
from pipeline.storage import Folder

ATTACK = "</script><script>alert('&')</script>"
WAYS = ("no negative", "NASA 0.25", "NASA 0.5", "CFG 2")
SHOWN = {"shown_shape": "star", "shown_colour": "blue", "shown_background": "white", "shown_quality": "clean"}
ASKED = {"asked_shape": "star", "asked_colour": "red", "asked_background": "white"}


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def rows_of(judged, count=5):
    systems = ("student, 1 step", "student, 1 step, NASA 0.5", "teacher, 1 step")
    rows = [
        {"system": system, "set": "held-out", "index": i, "prompt": f"{ATTACK} {i}", "negative_prompt": ATTACK}
        | {"seed": i, "away": None, "clip": float(i)}
        for system in systems
        for i in range(count)
    ]
    if judged:
        rows = [row | SHOWN | ASKED for row in rows]
        pair = PAIRS[0]
        rows += [
            {"system": way, "set": "exclusion", "prompt": pair.prompt, "negative_prompt": pair.negative_prompt}
            | {"seed": seed, "calibration": seed < 2, "selected": True, **SHOWN}
            for seed in range(4)
            for way in WAYS
            if seed >= 2 or "CFG" not in way
        ]
    return rows


@pytest.fixture(params=[False, True], ids=["not judged", "judged"])
def evaluated(request, tmp_path):
    """Recipe, summary, rows and pictures of an evaluation whose images are of one colour each."""
    rows = rows_of(request.param)
    made = [{**row, "image": png(5 * number)} for number, row in enumerate(rows)]
    folder = Folder.from_uri(tmp_path)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(made), buffer)
    folder.write("images/all.parquet", buffer.getvalue())
    rows = [{**row, "images": "all"} for row in rows]
    aggregate.judge(rows)
    recipe = Recipe().model_copy(update={"name": ATTACK})
    summary = aggregate.summarise(recipe, rows, {"clip": {"version": 3}})
    return recipe, summary, rows, ImageStore(folder, rows)


def test_the_page_escapes_every_text(evaluated):
    html = write_report(*evaluated)
    assert html.count("<script") == 2  # its data, and its program
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
    ways = [each["way"] for each in data["columns"][0]["ways"]]
    assert ways == (list(WAYS) if "exclusion" in summary else ["student, 1 step", "student, 1 step, NASA 0.5"])
    assert len(data["columns"]) == (2 if "exclusion" in summary else 5)
    images = {each["pictures"][0]["image"] for column in data["columns"] for each in column["ways"]}
    assert len(images) == len(ways) * len(data["columns"])


def test_the_summary_has_each_metric_with_its_interval_and_options(evaluated):
    _, summary, _, _ = evaluated
    clip = summary["metrics"]["clip"]
    assert (clip["value"], clip["images"], clip["options"]) == (2.0, 5, {"version": 3})
    assert clip["low"] == pytest.approx(2 - 1.96 * np.std(range(5), ddof=1) / np.sqrt(5), abs=1e-3)
    if "exclusion" not in summary:
        return
    assert summary["metrics"]["clean"]["value"] == 1.0
    assert summary["metrics"]["all_right"]["value"] == 0.0  # the colour is another
    assert summary["metrics"]["exclusion_removed"]["images"] == 2
    assert summary["metrics"]["exclusion_removed"]["value"] == 1.0  # blue is not red
    assert summary["student_minus_teacher_one_step"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "pairs": 5}


def test_the_sheet_has_a_row_a_way(evaluated):
    _, summary, _, pictures = evaluated
    pixels = np.asarray(pictures.sheet(summary))
    rows = 3 if "exclusion" in summary else 2  # of exclusion: plain, guidance, the chosen scale
    assert pixels.shape[0] > rows * 16
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}
    shown = [row for column in pictures.side_by_side(summary) for row in column]
    chosen = summary.get("chosen_way")
    own = [row for row in shown if not chosen or row["system"] in (WAYS[0], chosen, "CFG 2")]
    assert all(tuple(pictures.pixels(row)[0, 0].tolist()) in colours for row in own)


def test_no_images_have_no_figure():
    assert percent(Share(0, 0).as_dict()) == "no images"
    assert figure({"images": 0}) == "no images"


def test_a_contact_sheet_shows_every_image():
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    rows = [("a long label of one row", np.full((3, 8, 8, 3), 200, dtype=np.uint8)), ("b", images)]
    pixels = np.asarray(contact_sheet(rows, ["one two three four", "x", "y"]))
    assert (pixels == 200).all(axis=-1).sum() >= 3 * 16 * 16
    assert (pixels == 0).all(axis=-1).sum() >= 2 * 16 * 16


def test_a_report_without_a_metric_has_no_empty_table_and_nothing_to_sort_by(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "clip"} for row in rows_of(False)]
    folder, buffer = Folder.from_uri(tmp_path), io.BytesIO()
    made = [{**row, "image": png(5 * number)} for number, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(made), buffer)
    folder.write("images/all.parquet", buffer.getvalue())
    rows = [{**row, "images": "all"} for row in rows]
    recipe = Recipe()
    summary = aggregate.summarise(recipe, rows, {})
    page = write_report(recipe, summary, rows, ImageStore(folder, rows))
    assert 'id="systems"' not in page
    assert "Nothing scored these images" in page
    assert page.count("<label hidden>") == 2
