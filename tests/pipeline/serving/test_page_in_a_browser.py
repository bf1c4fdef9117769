"""The page in Chromium, over the real API and a tiny student, with the keyboard and on a phone."""

import io
import threading
import time

import pytest
import uvicorn
from PIL import Image

from pipeline import models
from pipeline.generation.image_generator import ImageGenerator
from pipeline.hashing import hash_bytes
from pipeline.serving.serving_options import ServingOptions
from pipeline.serving.student_replica import ImageResult, ServedModel
from pipeline.serving.web_app import build_web_app
from tests import browser
from tests.browser import CHROMIUM, PHONE

pytestmark = [pytest.mark.integration, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

SHOWN = "[...document.querySelectorAll('#images img')].every(image => image.naturalWidth > 0)"
IDLE = f"{SHOWN} && !document.querySelector('figure.busy')"
STEERED = "#prompt=a+cat&negative=a+dog&scale=0.5&seed=3"


class LocalReplicas:
    """Replicas in this process; a test changes their version, alarm and methods' record."""

    def __init__(self, folder):
        self.generator, self.version, self.alarm, self.requests = ImageGenerator(folder), "1", "", []
        self.lock = threading.Lock()

    async def generate(self, task):
        self.requests.append(task.request)
        with self.lock:
            (pixels,) = self.generator.generate([task.request])
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        scale = 0.5 if task.request.scale is None else task.request.scale
        return ImageResult(buffer.getvalue(), self.version, task.request.seed, 0.0 if task.request.is_plain else scale)

    async def describe(self):
        return ServedModel(self.version, self.generator.size, 0.5, "# The card", self.alarm)


@pytest.fixture(scope="module")
def student(tmp_path_factory, tiny_teacher):
    folder = tmp_path_factory.mktemp("page") / "student"
    models.save_student(tiny_teacher, models.load(tiny_teacher).denoiser.state_dict(), folder)
    return folder


@pytest.fixture
def replicas(student):
    return LocalReplicas(student)


@pytest.fixture
def serve(replicas):
    """Yield a function that serves the page with some options and returns its URL."""
    servers = []

    def start(**values):
        app = build_web_app(ServingOptions(name="tiny", tracking_uri="sqlite:///x", **values), replicas)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


def get_source(figure):
    return f"document.querySelector('#{figure} img').src"


def test_a_negative_prompt_changes_the_image_while_the_slider_moves(serve, replicas, tmp_path):
    async def script(tab):
        plain = await tab.value(get_source("plain"))
        assert plain == await tab.value(get_source("nasa")) == await tab.value(get_source("cfg"))
        await tab.value("document.getElementById('negative').focus()")
        for letter in "dog":
            await tab.key(letter)
        await tab.wait(f"{IDLE} && {get_source('nasa')} !== {get_source('plain')}")
        assert await tab.value(get_source("plain")) == plain
        steered, cfg = await tab.value(get_source("nasa")), await tab.value(get_source("cfg"))
        assert len({plain, steered, cfg}) == 3
        await tab.value("document.getElementById('scale').focus()")
        for _ in range(4):
            await tab.key("ArrowRight")
        await tab.wait(f"{IDLE} && {get_source('nasa')} !== {steered!r}")
        assert await tab.value(get_source("cfg")) == cfg
        assert await tab.value("document.getElementById('scale-value').textContent") == "0.7"
        assert await tab.value("document.querySelector('#nasa figcaption span').textContent") == "NASA 0.7"
        assert "scale=0.7" in await tab.value("location.hash")

    browser.visit(serve(), tmp_path, script, ready=IDLE)
    last = [request for request in replicas.requests if request.method == "nasa" and request.negative_prompt][-1]
    assert (last.negative_prompt, last.scale) == ("dog", 0.7)


def test_the_state_is_in_the_url_and_history_restores_an_image(serve, replicas, tmp_path):
    async def script(tab):
        first = await tab.value(get_source("nasa"))
        assert await tab.value("document.getElementById('negative').value") == "a dog"
        await tab.value("document.getElementById('random').click()")
        await tab.wait(f"{IDLE} && {get_source('nasa')} !== {first!r}")
        assert await tab.value("document.querySelectorAll('#history figure').length") == 2
        await tab.value("document.querySelector('#history figure:last-child button').click()")
        await tab.wait(f"{IDLE} && {get_source('nasa')} === {first!r}")
        assert await tab.value("document.getElementById('seed').value") == "3"
        await tab.value("document.getElementById('draw-scales').click()")
        await tab.wait("document.querySelectorAll('#scales img').length === 6")
        assert await tab.value("new Set([...document.querySelectorAll('#scales img')].map(i => i.src)).size") == 6
        name = await tab.value("document.querySelector('#nasa a').download")
        assert name == "tiny-1-3-NASA-0.5.png"
        await tab.value("document.getElementById('card').open = true")
        await tab.wait("document.getElementById('card-text').textContent === '# The card'")

    browser.visit(serve() + STEERED, tmp_path, script, ready=IDLE)


def test_a_promotion_and_an_alarm_are_shown_without_a_reload(serve, replicas, tmp_path):
    version, alarm = "document.getElementById('version').textContent", "document.getElementById('alarm')"

    async def script(tab):
        assert await tab.value(version) == "version 1 (champion), 32x32"
        asked = len(replicas.requests)
        replicas.version = "2"
        await tab.wait(f"{version} === 'Now version 2 (champion), 32x32' && {IDLE}")
        assert len(replicas.requests) == asked + 3
        assert await tab.value(f"{alarm}.hidden")
        replicas.alarm = "Version 3 cannot be served."
        await tab.wait(f"{alarm}.textContent === 'Version 3 cannot be served.' && !{alarm}.hidden")

    browser.visit(serve() + STEERED, tmp_path, script, ready=IDLE)


def test_a_token_is_asked_for(serve, tmp_path):
    async def script(tab):
        await tab.value("document.getElementById('token').value = 'secret'")
        await tab.value("document.getElementById('token').dispatchEvent(new Event('change'))")
        await tab.wait(f"{IDLE} && document.getElementById('token-label').hidden")
        assert await tab.value("document.getElementById('model').textContent") == "tiny"

    ready = "!document.getElementById('token-label').hidden"
    browser.visit(serve(token_sha256=hash_bytes(b"secret")) + STEERED, tmp_path, script, ready=ready)


def test_the_page_fits_a_phone(serve, tmp_path):
    async def script(tab):
        assert await tab.value("document.documentElement.scrollWidth") <= PHONE["width"]
        assert await tab.value("document.querySelector('#nasa img').clientWidth") >= 100
        assert await tab.value("document.getElementById('prompt').clientWidth") >= 300

    browser.visit(serve() + STEERED, tmp_path, script, ready=IDLE, size=PHONE)
