"""The report in Chromium, used with the keyboard and on a phone."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.evaluation import aggregate
from pipeline.evaluation.html_report import write_report
from pipeline.evaluation.image_store import ImageStore
from pipeline.evaluation.results import EvaluationRow
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from tests import browser
from tests.browser import CHROMIUM, PHONE

IMAGES = 3200
SYSTEMS = ("student", "student, NASA 0.5", "student, 1 step, NASA 1")

pytestmark = [pytest.mark.integration, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the path of a report of 3,200 images, as many as HPSv2's benchmark has."""
    folder = Folder.from_uri(tmp_path_factory.mktemp("report"))
    noise = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    images = [_encode_png(np.roll(noise, shift)) for shift in range(48)]
    rows = []
    for number in range(IMAGES):
        prompt = f"photo {number} of a {'cat' if number % 100 == 7 else 'dog'}"
        scores = {"score": float(number * 7919 % IMAGES)}
        for system in SYSTEMS if number < 50 else SYSTEMS[:1]:
            row = EvaluationRow(system, "hpsv2/photo", prompt, "red", number, index=number, images="all", scores=scores)
            rows.append(row)
    encoded = [row.to_columns() | {"image": images[row.index % 48]} for row in rows]
    (folder / "images").write_table("all.parquet", pa.Table.from_pylist(encoded))
    recipe = Recipe(name="many")
    summary = aggregate.summarise(recipe, rows, {})
    folder.write("report.html", write_report(recipe, summary, rows, ImageStore(folder, rows)).encode())
    return f"file://{folder.path}/report.html"


def _encode_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()


FIRST = "document.querySelector('#cards figure figcaption').textContent"
COUNT = "document.querySelectorAll('#cards figure').length"
READY = "document.querySelector('#cards figure')"
LOADED = "[...document.querySelectorAll('#cards img')].every(image => image.complete && image.naturalWidth > 0)"


def test_the_report_works_with_the_keyboard(page, tmp_path):
    async def script(tab):
        assert await tab.value(COUNT) == 48
        assert "3200 images, page 1 of 67" in await tab.value("document.getElementById('page').textContent")
        assert "0.000" in await tab.value(FIRST)  # the worst image comes first
        assert await tab.value(LOADED)
        await tab.key("n")
        assert "page 2 of 67" in await tab.value("document.getElementById('page').textContent")
        await tab.key("p")
        assert "page 1 of 67" in await tab.value("document.getElementById('page').textContent")
        await tab.key("/")
        assert await tab.value("document.activeElement.id") == "search"
        for letter in "cat":
            await tab.key(letter)
        assert "32 images" in await tab.value("document.getElementById('page').textContent")
        assert "cat" in await tab.value(FIRST)
        await tab.value("document.querySelector('#cards figure').focus()")
        await tab.key("Enter")
        assert await tab.value("document.getElementById('large').open")
        assert "score" in await tab.value("document.getElementById('large-text').textContent")
        await tab.key("Escape")
        assert not await tab.value("document.getElementById('large').open")

    browser.visit(page, tmp_path, script, ready=READY)


def test_the_slider_shows_each_sampling_method(page, tmp_path):
    async def script(tab):
        labels = []
        await tab.value("document.getElementById('method').focus()")
        for _ in SYSTEMS:
            labels.append(await tab.value("document.getElementById('method-name').textContent"))
            await tab.key("ArrowRight")
        assert labels == list(SYSTEMS)
        assert await tab.value("document.querySelectorAll('#methods figure').length") == 48

    browser.visit(page, tmp_path, script, ready=READY)


def test_the_report_fits_a_phone(page, tmp_path):
    async def script(tab):
        assert await tab.value("document.documentElement.scrollWidth") <= PHONE["width"]
        assert await tab.value("document.querySelector('#cards figure').clientWidth") >= 120

    browser.visit(page, tmp_path, script, ready=READY, size=PHONE)


def test_the_report_restores_its_state_from_the_url(page, tmp_path):
    async def script(tab):
        assert await tab.value(COUNT) == 32
        assert await tab.value("document.getElementById('order').value") == "best"
        scores = await tab.value("[...document.querySelectorAll('#cards b')].map(each => Number(each.textContent))")
        assert scores == sorted(scores, reverse=True)

    browser.visit(f"{page}#q=cat&order=best", tmp_path, script, ready=READY)
