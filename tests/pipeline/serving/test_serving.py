"""The whole server on a local Ray cluster: batches, promotions, a broken version and a killed replica."""

import asyncio
import contextlib
import io
import json
import re
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import aiohttp
import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.errors import UserError
from pipeline.registry import version_management
from pipeline.serving.application import build
from pipeline.serving.http_server import listen, log_requests_to
from pipeline.serving.server import (
    Address,
    Cluster,
    Stop,
    build_options,
    locate_log_folder,
    run,
    serve_until_stopped,
)

ROOT = Path(__file__).parents[3]
NAME, CLIENTS = "nasa-tiny", 12


@pytest.fixture(scope="module")
def registry(four_versions, tmp_path_factory):
    """Return the URI of a registry in which version 3 is the champion and 4 the challenger."""
    folder = tmp_path_factory.mktemp("serving")
    shutil.copy(four_versions[0], folder / "ml.db")
    return f"sqlite:///{folder}/ml.db"


def find_free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", probe.getsockname()[1])


@pytest.fixture(scope="module")
def address():
    return find_free_address()


@pytest.fixture(scope="module")
def serve_address(ray_cluster):
    """Start Ray Serve with its own HTTP proxy, which the server neither needs nor ends, and return the address."""
    from ray import serve

    address = find_free_address()
    serve.start(http_options={"host": address.host, "port": address.port})
    return address


@contextmanager
def run_server(registry, address, **given):
    """Run the server in a thread; yield the event that stops it, and its lines."""
    options = build_options({"name": NAME, "tracking_uri": registry, "cpus": 0.5, **given}, address, None)
    stopped, lines, listener = threading.Event(), [], listen(address.host, address.port)

    def serve_requests():
        with log_requests_to(locate_log_folder()):
            run(options, listener, nullcontext(Stop(stopped)), lines.append, address.url)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serve_requests)
        try:
            while not any("is in service" in line for line in lines):
                assert not running.done(), running.result()
                time.sleep(0.1)
            yield stopped, lines
        finally:
            stopped.set()
            running.result(60)


@pytest.fixture(scope="module")
def server(serve_address, registry, address):
    """Run the server."""
    with run_server(registry, address, poll_seconds=0.2, batch_size=8, max_queued=64) as running:
        yield running


async def ask(session, address, **body):
    """Return status, headers and the PNG's pixels, or the error's body."""
    url = f"{address.url}/v1/images/generations"
    async with session.post(url, json=body, headers={"Accept": "image/png"}) as answer:
        content = await answer.read()
        shown = np.asarray(Image.open(io.BytesIO(content))) if answer.status == 200 else content
        return answer.status, answer.headers, shown


def run_scenario(scenario):
    async def with_session():
        async with aiohttp.ClientSession() as session:
            return await scenario(session)

    return asyncio.run(asyncio.wait_for(with_session(), 120))


async def wait_for_version(session, address, number, seconds=10):
    """Return the seconds until the version is in service."""
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        async with session.get(f"{address.url}/healthz") as answer:
            if (await answer.json())["version"] == number:
                return time.monotonic() - started
        await asyncio.sleep(0.05)
    raise AssertionError(f"version {number} is not in service after {seconds} s")


def test_mixed_requests_are_the_images_of_the_registered_model(server, registry, address):
    requests = [
        {"prompt": f"a cat {number}", "negative_prompt": ["", "a dog"][number % 2], "seed": number, "scale": 0.5}
        for number in range(CLIENTS)
    ]

    async def scenario(session):
        return await asyncio.gather(*(ask(session, address, **body) for body in requests))

    mlflow.set_tracking_uri(registry)
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    for body, (status, headers, shown) in zip(requests, run_scenario(scenario), strict=True):
        assert (status, headers["x-model-version"], headers["x-seed"]) == (200, "3", str(body["seed"]))
        (png,) = model.predict([body])
        assert np.abs(shown.astype(int) - np.asarray(Image.open(io.BytesIO(png)))).max() <= 2


def test_a_promotion_and_a_rollback_are_taken_over_without_a_lost_request(server, registry, address):
    answers = []

    async def keep_asking(session, is_over):
        number = 0
        while not is_over.is_set():
            number += 1
            answers.append(await ask(session, address, prompt="a cat", negative_prompt="a dog", seed=number % 3))

    async def scenario(session):
        is_over = asyncio.Event()
        clients = [asyncio.create_task(keep_asking(session, is_over)) for _ in range(4)]
        await wait_for_version(session, address, "3")
        await asyncio.to_thread(version_management.promote, registry, NAME, "4")
        await wait_for_version(session, address, "4")
        await asyncio.to_thread(version_management.roll_back, registry, NAME)
        await wait_for_version(session, address, "3")
        is_over.set()
        await asyncio.gather(*clients)

    run_scenario(scenario)
    assert {status for status, *_ in answers} == {200}
    assert {headers["x-model-version"] for _, headers, _ in answers} == {"3", "4"}
    shown = {}
    for _, headers, image in answers:  # every image of a version and a seed is the same one
        key = headers["x-model-version"], headers["x-seed"]
        assert np.abs(shown.setdefault(key, image).astype(int) - image).max() <= 1
    assert not np.array_equal(shown["3", "1"], shown["4", "1"])


def test_a_broken_version_raises_an_alarm_and_leaves_the_old_one_in_service(server, registry, address, monkeypatch):
    client = tracking.build_client(registry)
    client.set_model_version_tag(NAME, "2", "student_sha256", "0" * 64)

    async def scenario(session):
        version_management.promote(registry, NAME, "2")
        for _ in range(200):
            async with session.get(f"{address.url}/healthz") as answer:
                health = await answer.json()
            if health["alarm"]:
                break
            await asyncio.sleep(0.1)
        status, headers, _ = await ask(session, address, prompt="a cat")
        version_management.promote(registry, NAME, "3")
        for _ in range(100):
            async with session.get(f"{address.url}/healthz") as answer:
                if not (await answer.json())["alarm"]:
                    return health, status, headers["x-model-version"]
            await asyncio.sleep(0.1)
        raise AssertionError("the alarm does not end")

    health, status, version = run_scenario(scenario)
    assert (health["status"], health["version"]) == ("degraded", "3")
    assert "Version 2 cannot be served:" in health["alarm"]
    assert "its checksum is another) Version 3 stays in service." in health["alarm"]
    assert (status, version) == (200, "3")


def test_requests_survive_a_killed_replica(server, address):
    import ray

    async def scenario(session):
        clients = [asyncio.create_task(ask(session, address, prompt="a cat", seed=seed)) for seed in range(8)]
        await asyncio.sleep(0.05)
        (killed,) = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#student#" in actor["name"]]
        ray.kill(ray.get_actor(killed["name"], namespace=killed["namespace"]), no_restart=True)
        return [*await asyncio.gather(*clients), await ask(session, address, prompt="a cat", seed=1)]

    answers = run_scenario(scenario)
    assert all(status == 200 or (status in (429, 503) and headers["retry-after"]) for status, headers, _ in answers)
    assert answers[-1][0] == 200


def test_a_full_queue_is_status_429(server, address):
    async def scenario(session):
        return await asyncio.gather(*(ask(session, address, prompt=f"a cat {n}", seed=n) for n in range(300)))

    answers = run_scenario(scenario)
    counts = {status: sum(answer[0] == status for answer in answers) for status in (200, 429)}
    assert counts[200] >= 64
    assert counts[429] > 0
    assert sum(counts.values()) == len(answers)
    assert all(headers["retry-after"] for status, headers, _ in answers if status == 429)


def test_metrics_and_logs_are_where_the_page_says(server, address):
    import ray

    async def scenario(session):
        async with session.post(
            f"{address.url}/v1/images/generations",
            json={"prompt": "a cat", "negative_prompt": "a dog"},
            headers={"X-Request-ID": "asked-by-a-test"},
        ) as answer:
            assert answer.headers["X-Request-ID"] == "asked-by-a-test"
        documented = set(re.findall(r"`(ray_nasa_serving_\w+)`", (ROOT / "docs/serving.md").read_text()))
        (node,) = ray.nodes()
        for _ in range(60):
            async with session.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics") as answer:
                exported = await answer.text()
            missing = {name for name in documented if name not in exported}
            if not missing:
                break
            await asyncio.sleep(0.5)
        return documented, missing

    documented, missing = run_scenario(scenario)
    assert len(documented) == 9
    assert not missing
    lines = (locate_log_folder() / "web.log").read_text().splitlines()
    (record,) = [record for record in map(json.loads, lines) if record.get("request_id") == "asked-by-a-test"]
    assert (record["message"], record["status"]) == ("images", 200)
    assert 0 < record["seconds"] < 60


@pytest.mark.slow
def test_another_server_of_the_cluster_has_replicas_of_its_own(server, registry, address):
    other = find_free_address()
    with run_server(registry, other, cpus=0.1, alias="challenger", batch_size=2):

        async def ask_both(session):
            return [(await ask(session, each, prompt="a cat"))[1]["x-model-version"] for each in (address, other)]

        assert run_scenario(ask_both) == ["3", "4"]

    async def ask_first(session):
        return (await ask(session, address, prompt="a cat"))[0]

    time.sleep(1)  # the replicas of the other server end after it
    assert run_scenario(ask_first) == 200


def test_replicas_that_this_machine_cannot_hold_are_rejected(ray_cluster, registry, address):
    for given, message in (
        ({"gpus": 8.0}, r"--gpus: got 8.0; expected at most 0 for each of 1 replicas on this machine"),
        ({"cpus": 1.0, "min_replicas": 40}, r"--cpus: got 1.0; expected at most 0.1 for each of 40 replicas"),
    ):
        options = build_options({"name": NAME, "tracking_uri": registry, **given}, address, None)
        with pytest.raises(UserError, match=message):
            serve_until_stopped(options, Address(address.host, 0), Cluster(), log=print)


def test_requests_in_progress_are_finished_when_the_server_stops(server, address):
    stopped, _ = server

    async def scenario(session):
        await wait_for_version(session, address, "3")
        clients = [asyncio.create_task(ask(session, address, prompt="a cat", seed=seed)) for seed in range(24)]
        await asyncio.sleep(1 / 4)
        stopped.set()
        late = []
        with contextlib.suppress(aiohttp.ClientConnectionError):
            while len(late) < 1000:
                late.append(await ask(session, address, prompt="a cat"))
        return late, await asyncio.gather(*clients)

    late, answers = run_scenario(scenario)
    assert len(late) < 1000, "the server does not end"
    assert {status for status, *_ in answers} <= {200, 503}  # on a busy machine some come after the end was requested
    assert sum(status == 200 for status, *_ in answers) >= 8
    assert all(headers["retry-after"] == "1" for status, headers, _ in (*late, *answers) if status != 200)


def test_the_application_of_a_rayservice_answers_behind_ray_serve_s_proxy(registry, serve_address):
    from ray import serve

    given = {"name": NAME, "tracking_uri": registry, "cpus": 0.5}
    serve.run(build(build_options(given, serve_address, None)), name="rayservice", route_prefix="/")

    async def scenario(session):
        return await ask(session, serve_address, prompt="a cat", negative_prompt="a dog", seed=5)

    try:
        status, headers, shown = run_scenario(scenario)
    finally:
        serve.delete("rayservice")
    assert (status, headers["x-model-version"], headers["x-seed"], shown.shape) == (200, "3", "5", (32, 32, 3))
    assert headers["X-Request-ID"]


@pytest.mark.slow
def test_a_damaged_champion_is_reported_in_one_line(ray_cluster, registry, address):
    client = tracking.build_client(registry)
    client.set_registered_model_alias(NAME, "damaged", "1")
    client.set_model_version_tag(NAME, "1", "student_sha256", "0" * 64)
    given = {"name": NAME, "tracking_uri": registry, "cpus": 0.1, "alias": "damaged"}
    listener = listen(address.host, 0)
    with closing(listener), pytest.raises(UserError, match=r"nasa-tiny cannot be served: .*its checksum is another"):
        run(build_options(given, address, None), listener, nullcontext(Stop()), print, address.url)
