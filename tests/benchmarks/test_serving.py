"""The table of the server's measurements, and the hostile requests' variety."""

import json
import random
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from benchmarks.serving.__main__ import PARTS, format_table
from benchmarks.serving.clients import iter_bodies
from benchmarks.serving.hostile import draw_request
from pipeline.serving.image_api import parse_images_request
from pipeline.serving.serving_options import ServingOptions
from pipeline.serving.student_replica import ImageResult, ServedModel
from pipeline.serving.web_app import build_web_app

ROOT = Path(__file__).parents[2]


class Replicas:
    async def generate(self, task):
        return ImageResult(b"png", "1", task.request.seed, 0.0)

    async def describe(self):
        return ServedModel("1", (64, 64), 0.5, "", "")


def test_a_table_has_a_row_for_each_value():
    rows = {"wrong images": 0, "by status": {"200": 12_000, "422": 3}, "MiB": [5, 7, 6, 5, 9], "seconds": 1.5}
    assert format_table("chaos", rows).splitlines() == [
        *("| chaos | |", "|---|---|", "| wrong images | 0 |", "| by status | 200: 12,000, 422: 3 |"),
        *("| MiB | 5 times, 5 to 9 |", "| seconds | 1.5 |"),
    ]


def test_the_page_holds_the_recorded_figures():
    results = json.loads((ROOT / "docs/data/serving.json").read_text())
    page = (ROOT / "docs/serving.md").read_text()
    assert set(results) == set(PARTS)
    for part, rows in results.items():
        for line in format_table(part, rows).splitlines():
            assert line in page


def test_the_clients_requests_are_accepted_and_differ():
    bodies = list(iter_bodies(50))
    assert bodies == list(iter_bodies(50))
    assert len({json.dumps(body) for body in bodies}) == 50
    for body in bodies:
        parse_images_request(body)


@pytest.mark.parametrize("seed", range(3))
def test_no_hostile_request_is_an_internal_error(seed):
    client = TestClient(build_web_app(ServingOptions(name="tiny", tracking_uri="sqlite:///x"), Replicas()))
    draw, statuses = random.Random(seed), set()
    for _ in range(300):
        method, path, content, headers = draw_request(draw)
        headers.pop("Content-Length", None)
        statuses.add(client.request(method, path, content=content, headers=headers).status_code)
    assert statuses <= {200, 400, 404, 405, 413, 422}
    assert {200, 413, 422} <= statuses
