"""The image API over replicas that the tests stand in for; the real ones are in test_serving.py."""

import asyncio
import base64
import json
import time

import pytest
from fastapi.testclient import TestClient

from pipeline.hashing import hash_bytes
from pipeline.serving.middleware import BodyLimit
from pipeline.serving.server import Address, build_options
from pipeline.serving.serving_options import ServingOptions
from pipeline.serving.student_replica import ImageResult, ServedModel
from pipeline.serving.web_app import OverloadedError, UnavailableError, build_web_app

IMAGES = "/v1/images/generations"
OWN_SCALE = 0.75


class Replicas:
    """Replicas whose PNG tells what was asked for."""

    def __init__(self):
        self.tasks, self.error, self.seconds, self.alarm = [], None, 0.0, ""

    async def generate(self, task):
        self.tasks.append(task)
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        request = task.request
        scale = OWN_SCALE if request.scale is None else request.scale
        applied = scale if request.negative_prompt else 0.0
        png = f"{request.prompt}|{request.negative_prompt}|{request.method}|{scale}".encode()
        return ImageResult(png, "3", request.seed, applied)

    async def describe(self):
        if self.error:
            raise self.error
        return ServedModel("3", (64, 48), OWN_SCALE, "# card", self.alarm)


@pytest.fixture
def replicas():
    return Replicas()


@pytest.fixture
def make_client(replicas):
    def make(observe=lambda status, seconds: None, **values):
        options = ServingOptions(name="tiny", tracking_uri="sqlite:///x", **values)
        return TestClient(build_web_app(options, replicas, observe), raise_server_exceptions=False)

    return make


@pytest.fixture
def client(make_client):
    return make_client()


def test_images_have_seeds_of_their_own_and_name_their_version(client, replicas):
    body = {"prompt": "a cat", "negative_prompt": "a dog", "n": 3, "seed": 7, "scale": 0.5}
    answer = client.post(IMAGES, json=body).json()
    assert [image["seed"] for image in answer["data"]] == [7, 8, 9]
    assert {image["version"] for image in answer["data"]} == {"3"}
    assert base64.b64decode(answer["data"][0]["b64_json"]) == b"a cat|a dog|nasa|0.5"
    assert (answer["model"], answer["warnings"]) == ("tiny", [])
    assert abs(answer["created"] - time.time()) < 60
    assert all(abs(task.deadline - time.time() - 60) < 10 for task in replicas.tasks)


def test_the_scale_is_the_version_s_own_by_default_and_other_methods_have_theirs(client):
    for method, scale in {"nasa": OWN_SCALE, "nag": 4.0, "vsf": 0.5, "cfg": 2.0}.items():
        body = {"prompt": "a cat", "negative_prompt": "a dog", "method": method}
        (image,) = client.post(IMAGES, json=body).json()["data"]
        assert base64.b64decode(image["b64_json"]).decode() == f"a cat|a dog|{method}|{scale}"
        assert image["scale"] == scale


def test_seeds_are_random_by_default(client):
    seeds = {client.post(IMAGES, json={"prompt": "a cat"}).json()["data"][0]["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_a_png_is_the_answer_if_it_is_accepted(client):
    answer = client.post(IMAGES, json={"prompt": "a cat", "seed": 5}, headers={"Accept": "image/png"})
    assert (answer.content, answer.headers["content-type"]) == (b"a cat||nasa|0.75", "image/png")
    assert (answer.headers["x-model-version"], answer.headers["x-seed"]) == ("3", "5")
    answer = client.post(IMAGES, json={"prompt": "a cat", "n": 2}, headers={"Accept": "image/png"})
    assert answer.json()["error"]["message"] == "n: got 2; expected 1 with Accept: image/png."


@pytest.mark.parametrize(
    ("body", "warning"),
    [
        ({"negative_prompt": ""}, "negative_prompt: it is empty, so it had no effect."),
        ({"negative_prompt": "a dog", "scale": 0}, "negative_prompt: it had no effect, as the scale is 0."),
    ],
)
def test_a_negative_prompt_without_effect_is_told(client, body, warning):
    asked = {"prompt": "a cat", **body}
    assert client.post(IMAGES, json=asked).json()["warnings"] == [warning]
    assert client.post(IMAGES, json=asked, headers={"Accept": "image/png"}).headers["x-warning"] == warning


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "prompt", "prompt: got None; expected a value."),
        ({"prompt": ""}, "prompt", "prompt: got ''; expected a string that is not empty."),
        ({"prompt": 5}, "prompt", "prompt: got 5; expected a string."),
        ({"prompt": "a", "n": 0}, "n", "n: got 0; expected a number at least 1."),
        ({"prompt": "a", "n": 11}, "n", "n: got 11; expected a number at most 10."),
        ({"prompt": "a", "n": True}, "n", "n: got True; expected a whole number."),
        ({"prompt": "a", "seed": -1}, "seed", "seed: got -1; expected a number at least 0."),
        ({"prompt": "a", "seed": 2**60}, "seed", f"seed: got {2**60}; expected a number at most {2**53 - 1}."),
        ({"prompt": "a", "seed": 0.5}, "seed", "seed: got 0.5; expected a whole number."),
        ({"prompt": "a", "scale": -0.1}, "scale", "scale: got -0.1; expected a number at least 0."),
        ({"prompt": "a", "scale": "1"}, "scale", "scale: got '1'; expected a number."),
        ({"prompt": "a", "method": "magic"}, "method", "method: got 'magic'; expected 'nasa', 'nag', 'vsf' or 'cfg'."),
        ({"prompt": "a", "response_format": "url"}, "response_format", "got 'url'; expected 'b64_json'."),
        ({"prompt": "a", "size": "9x9"}, "size", "size: got '9x9'; expected auto or 64x48, the model's own size."),
        ({"prompt": "a", "quality": "hd"}, "quality", "quality: got 'hd'; expected one of the fields prompt, "),
        ({"prompt": "a", "timeout": 0}, "timeout", "timeout: got 0; expected a number above 0."),
        ([], None, "got []; expected a section with fields."),
    ],
)
def test_a_wrong_field_is_status_422_with_its_name(client, replicas, body, field, message):
    answer = client.post(IMAGES, json=body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert not replicas.tasks


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 30_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "scale": NaN}',
        b'{"prompt": "a", "scale": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"\\ud800": 1, "prompt": "a"}',
        b'{"prompt": "a", "method": "' + b"x" * 30_000 + b'"}',
    ],
)
def test_a_broken_body_is_status_422(client, body):
    answer = client.post(IMAGES, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert len(answer.json()["error"]["message"]) < 500


def test_a_form_is_rejected_so_that_no_other_site_can_send_one(client):
    answer = client.post(IMAGES, content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422
    assert "Content-Type: got 'text/plain'; expected application/json." in answer.text


def test_a_body_that_does_not_arrive_in_time_is_status_408():
    sent = []

    async def send(message):
        sent.append(message)

    async def scenario():
        limit = BodyLimit(app=None, max_bytes=2000, max_seconds=0.05)
        parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

        async def receive():
            return next(parts, None) or await asyncio.sleep(60)

        await limit({"type": "http", "headers": [(b"content-length", b"20")]}, receive, send)

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_request_with_a_size_ends_in_time_while_no_replica_answers(make_client, replicas, monkeypatch):
    monkeypatch.setattr(replicas, "describe", lambda: asyncio.sleep(60))
    answer = make_client(max_seconds=0.1).post(IMAGES, json={"prompt": "a cat", "size": "64x48"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


def test_a_large_body_is_status_413_with_and_without_a_declared_length(make_client, replicas):
    client = make_client(max_body_bytes=2000)
    headers = {"Content-Type": "application/json"}
    assert client.post(IMAGES, content=b"x" * 2001, headers=headers).status_code == 413
    assert client.post(IMAGES, content=(b"x" * 500 for _ in range(5)), headers=headers).status_code == 413
    assert client.post(IMAGES, content=b"x" * 2000, headers=headers).status_code == 422
    assert not replicas.tasks


def test_another_model_is_status_404(client):
    answer = client.post(IMAGES, json={"prompt": "a", "model": "other"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "model: got 'other'; expected tiny, which is served."
    assert client.post(IMAGES, json={"prompt": "a", "model": "tiny"}).status_code == 200


@pytest.mark.parametrize(("error", "status"), [(OverloadedError(), 429), (UnavailableError("ActorDiedError"), 503)])
def test_a_full_queue_and_absent_replicas_say_when_to_try_again(client, replicas, error, status):
    replicas.error = error
    answer = client.post(IMAGES, json={"prompt": "a"})
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "1")
    assert client.get("/healthz").status_code == status


def test_an_internal_error_is_answered_without_its_details(client, replicas):
    replicas.error = RuntimeError("a path or a secret")
    answer = client.post(IMAGES, json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


def test_a_late_answer_is_status_503(client, make_client, replicas):
    replicas.seconds = 0.3
    answer = client.post(IMAGES, json={"prompt": "a", "timeout": 0.05})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["param"] == "timeout"
    assert make_client(max_seconds=0.05).post(IMAGES, json={"prompt": "a", "timeout": 10}).status_code == 503
    assert client.post(IMAGES, json={"prompt": "a", "timeout": 10}).status_code == 200


def test_a_token_is_required_of_the_api_but_not_of_the_page(make_client):
    client = make_client(token_sha256=hash_bytes(b"secret"))
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
    ):
        for path in ("/v1/models", "/v1/models/tiny/card"):
            assert client.get(path, headers=headers).status_code == 401
        assert client.post(IMAGES, json={"prompt": "a"}, headers=headers).status_code == 401
    allowed = {"Authorization": "Bearer secret"}
    assert client.post(IMAGES, json={"prompt": "a"}, headers=allowed).status_code == 200
    assert client.get("/v1/models", headers=allowed).status_code == 200
    assert client.get("/").status_code == client.get("/healthz").status_code == 200


def test_other_hosts_are_rejected(make_client):
    client = make_client(allowed_hosts=("localhost",))
    assert client.get("/v1/models", headers={"Host": "attacker.example"}).status_code == 400
    assert client.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_server_of_this_machine_is_reached_by_its_own_address(make_client, host):
    address = Address(host, 8000)
    options = build_options({"name": "tiny", "tracking_uri": "sqlite:///x"}, address, None)
    client = make_client(allowed_hosts=options.allowed_hosts)
    assert client.get("/v1/models", headers={"Host": address.url.removeprefix("http://")}).status_code == 200
    assert client.get("/v1/models", headers={"Host": "attacker.example"}).status_code == 400


def test_the_model_and_its_health_are_described(client, replicas):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["version"], model["size"], model["scale"]) == ("tiny", "3", "64x48", OWN_SCALE)
    assert client.get("/v1/models/tiny/card").text == "# card"
    assert client.get("/v1/models/other/card").status_code == 404
    assert client.get("/healthz").json() == {"status": "ok", "version": "3", "alarm": ""}
    replicas.alarm = "Version 4 cannot be served"
    assert client.get("/healthz").json()["status"] == "degraded"
    assert client.get("/v1/models").json()["data"][0]["alarm"] == "Version 4 cannot be served"


def test_requests_are_observed_with_their_status(make_client):
    seen = []
    client = make_client(observe=lambda status, seconds: seen.append((status, seconds)))
    client.post(IMAGES, json={"prompt": "a"})
    client.post(IMAGES, json={})
    client.get("/healthz")
    assert [status for status, _ in seen] == [200, 422]
    assert all(0 < seconds < 10 for _, seconds in seen)


def test_the_documentation_loads_nothing_from_elsewhere(client):
    for path in ("/docs", "/"):
        assert "https://" not in client.get(path).text
    operation = client.get("/openapi.json").json()["paths"][IMAGES]["post"]
    fields = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"prompt", "negative_prompt", "scale", "method", "seed", "n"} <= set(fields)
    assert {"422", "429", "503"} <= set(operation["responses"])
    assert json.dumps(fields)
