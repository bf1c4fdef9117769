"""The report in Chromium, used with the keyboard and on a phone."""

import asyncio
import io
import itertools
import json
import shutil
import subprocess

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

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IMAGES = 3200
SYSTEMS = ("student", "student, NASA 0.5", "student, 1 step, NASA 1")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}

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
    return f"{folder.path}/report.html"


def _encode_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()


class Tab:
    """A browser tab that is controlled by the Chrome DevTools Protocol."""

    def __init__(self, socket):
        self.socket, self.numbers, self.errors = socket, itertools.count(1), []

    async def send(self, method, **parameters):
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            if message.get("id") == number:
                return message["result"]

    async def value(self, expression):
        result = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def key(self, key, **options):
        codes = {"ArrowRight": 39, "Enter": 13, "Escape": 27, "Tab": 9}
        event = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper())), **options}
        if len(key) == 1 or key == "Enter":
            event["text"] = "\r" if key == "Enter" else key
        await self.send("Input.dispatchKeyEvent", type="keyDown", **event)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **event)


def visit(page, tmp_path, script, size=None):
    """Run `script(tab)` on the page in a fresh Chromium."""
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    arguments += [f"--user-data-dir={tmp_path / 'profile'}", "--disable-dev-shm-usage", "about:blank"]
    process = subprocess.Popen([CHROMIUM, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening" in line)
        return asyncio.run(_visit(address.split("/")[2], page, script, size))
    finally:
        process.kill()
        process.wait()


async def _visit(host, page, script, size):
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{host}/json/list") as answer:
            target = next(item for item in await answer.json() if item["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            await tab.send("Runtime.enable")
            await tab.send("Page.enable")
            if size:
                await tab.send("Emulation.setDeviceMetricsOverride", **size)
            await tab.send("Page.navigate", url=f"file://{page}")
            for _ in range(300):
                if await tab.value("document.readyState === 'complete' && !!document.querySelector('#cards figure')"):
                    break
                await asyncio.sleep(0.1)
            result = await script(tab)
            assert not tab.errors
            return result


FIRST = "document.querySelector('#cards figure figcaption').textContent"
COUNT = "document.querySelectorAll('#cards figure').length"
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

    visit(page, tmp_path, script)


def test_the_slider_shows_each_sampling_method(page, tmp_path):
    async def script(tab):
        labels = []
        await tab.value("document.getElementById('method').focus()")
        for _ in SYSTEMS:
            labels.append(await tab.value("document.getElementById('method-name').textContent"))
            await tab.key("ArrowRight")
        assert labels == list(SYSTEMS)
        assert await tab.value("document.querySelectorAll('#methods figure').length") == 48

    visit(page, tmp_path, script)


def test_the_report_fits_a_phone(page, tmp_path):
    async def script(tab):
        assert await tab.value("document.documentElement.scrollWidth") <= PHONE["width"]
        assert await tab.value("document.querySelector('#cards figure').clientWidth") >= 120

    visit(page, tmp_path, script, PHONE)


def test_the_report_restores_its_state_from_the_url(page, tmp_path):
    async def script(tab):
        assert await tab.value(COUNT) == 32
        assert await tab.value("document.getElementById('order').value") == "best"
        scores = await tab.value("[...document.querySelectorAll('#cards b')].map(each => Number(each.textContent))")
        assert scores == sorted(scores, reverse=True)

    visit(f"{page}#q=cat&order=best", tmp_path, script)
