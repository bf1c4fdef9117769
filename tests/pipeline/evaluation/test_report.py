import re

import numpy as np
import pytest

from pipeline.evaluation.report import percent, write_report
from pipeline.evaluation.sheet import contact_sheet
from pipeline.evaluation.statistics import Share
from pipeline.recipe import Recipe

ATTACK = "<script>alert('&')</script>"
IMAGES = np.zeros((2, 8, 8, 3), dtype=np.uint8)
SHARE = Share(3, 4).as_dict()
SHARES = ("shape", "colour", "background", "all_right", "clean")
PICTURES = {"negative_prompt": ATTACK}
JUDGED = {
    **PICTURES,
    "accuracy": [
        {"system": ATTACK, "images": 4, "clip_positive": 0.3, "clip_negative": 0.2, **dict.fromkeys(SHARES, SHARE)}
    ],
    "student_minus_teacher_one_step": {"difference": -0.1, "low": -0.2, "high": 0.0},
    "chosen_scale": 0.5,
    "exclusion": [
        {"way": way, "trained_negative": True, "removed": SHARE, "kept": SHARE, "clean": Share(0, 0).as_dict()}
        for way in ("CFG 2", "NASA 0.5")
    ],
}


def page(summary):
    return write_report(Recipe(name=ATTACK), summary, [(ATTACK, IMAGES)], [ATTACK, "plain"])


@pytest.mark.parametrize("summary", [PICTURES, JUDGED])
def test_the_page_escapes_every_text(summary):
    html = page(summary)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5


@pytest.mark.parametrize("summary", [PICTURES, JUDGED])
def test_the_page_is_self_contained(summary):
    html = page(summary)
    assert not re.search(r"https?:|url\(|@import|<link|href=", html)
    sources = re.findall(r'src="([^"]{22})', html)
    assert sources == ["data:image/png;base64,"] * 2


def test_the_judged_page_shows_its_figures():
    html = page(JUDGED)
    assert "75.0 % (30.1 to 95.4)" in html
    assert "-0.100" in html
    assert re.findall(r'<tr class="chosen"><td>([^<\n]*)', html) == ["NASA 0.5"]


def test_no_images_have_no_percentage():
    assert percent(Share(0, 0).as_dict()) == "no images"


def test_a_contact_sheet_shows_every_image():
    rows = [("a long label of one row", np.full((3, 8, 8, 3), 200, dtype=np.uint8)), ("b", IMAGES)]
    pixels = np.asarray(contact_sheet(rows, ["one two three four", "x", "y"]))
    assert (pixels == 200).all(axis=-1).sum() >= 3 * 16 * 16
    assert (pixels == 0).all(axis=-1).sum() >= 2 * 16 * 16
