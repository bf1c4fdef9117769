"""The web application in a process of its own: request ids, its socket, its log, and the end of a slow request."""

import asyncio
import json
import logging
import socket
from contextlib import suppress

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from pipeline.errors import UserError
from pipeline.serving.http_server import KEEP_ALIVE_SECONDS, LOG_FILE, answer_requests, listen, log_requests_to
from pipeline.serving.middleware import RequestRecorder, Traffic


async def answer(request):
    await asyncio.sleep(float(request.query_params.get("wait", 0)))
    return PlainTextResponse(request.headers["x-request-id"])


def build_app():
    app = Starlette(routes=[Route("/images", answer)])
    return RequestRecorder(app, "/images", Traffic(), lambda status, seconds: None)


def ask(*headers, wait=0.0):
    """Return the answers to requests with these headers, of a server that ends while the last one is in progress."""

    async def get(session, url, given):
        async with session.get(url, headers=given, params={"wait": str(wait)}) as response:
            return response.status, await response.text(), response.headers["X-Request-ID"], dict(response.headers)

    async def scenario():
        listener = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/images"
        async with aiohttp.ClientSession() as session:
            async with answer_requests(build_app(), listener):
                asked = [asyncio.create_task(get(session, url, given)) for given in headers]
                await asyncio.sleep(0.5)
            answers = await asyncio.gather(*asked)
            with pytest.raises(aiohttp.ClientConnectionError):
                await get(session, url, {})
        return answers

    return asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_request_keeps_its_id_or_gets_one():
    (first, second, third) = ask({"X-Request-ID": "mine"}, {}, {})
    assert first[:3] == (200, "mine", "mine")
    assert second[1] == second[2] != third[1] == third[2]
    assert len(second[1]) == 36
    assert "server" not in {name.lower() for name in first[3]}


@pytest.mark.parametrize("given", ["", "x" * 129, "caf\u00e9", "a\tb"])
def test_an_id_that_could_not_be_printed_is_replaced(given):
    ((status, seen, sent, _),) = ask({"X-Request-ID": given})
    assert (status, len(sent)) == (200, 36)
    assert seen == sent


def test_a_head_of_any_size_is_not_kept():
    async def scenario():
        listener = listen("127.0.0.1", 0)
        async with answer_requests(build_app(), listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET /images HTTP/1.1\r\nHost: x\r\n")
            with suppress(ConnectionError):
                for number in range(1000):
                    writer.write(b"X-%d: " % number + b"y" * 2000 + b"\r\n")
                    await writer.drain()
            answer = await reader.read(100)
            writer.close()
        return answer

    with suppress(ConnectionResetError):  # closed while more was on its way
        assert asyncio.run(asyncio.wait_for(scenario(), 30)).startswith(b"HTTP/1.1 400 ")


def test_a_large_body_and_many_requests_of_a_connection_are_no_head():
    async def scenario():
        listener = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/images"
        async with answer_requests(build_app(), listener), aiohttp.ClientSession() as session:
            statuses = set()
            for _ in range(50):
                async with session.get(url, headers={"X-Long": "y" * 4000}, data=b"b" * 100_000) as response:
                    statuses.add(response.status)
        return statuses

    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == {200}


def test_an_idle_connection_stays_open_longer_than_a_reverse_proxy_keeps_it():
    assert KEEP_ALIVE_SECONDS > 75  # nginx's


def test_two_servers_that_start_cannot_have_the_same_port():
    with listen("127.0.0.1", 0) as first, pytest.raises(UserError, match="Address already in use"):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_an_error(port):
    with pytest.raises(UserError, match=f"--port: got {port}; expected a number from 0 to 65535"):
        listen("127.0.0.1", port)


def test_requests_in_progress_are_answered_before_the_server_ends():
    ((status, *_),) = ask({}, wait=1.2)
    assert status == 200


def test_a_draining_server_takes_no_further_request():
    traffic, seen = Traffic(), []
    traffic.is_draining = True
    app = Starlette(routes=[Route("/images", lambda request: seen.append(request))])
    client = TestClient(RequestRecorder(app, "/images", traffic, lambda status, seconds: None))
    response = client.get("/images")
    assert (response.status_code, response.headers["retry-after"], seen) == (503, "1", [])


def test_a_taken_port_is_an_error_that_names_the_option():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--metrics-port: got {port}; expected a free port of 127.0.0.1"):
            listen("127.0.0.1", port, "--metrics-port")


def test_a_request_is_a_json_line_of_the_log(tmp_path):
    with log_requests_to(tmp_path / "logs"):
        ask({"X-Request-ID": "mine"})
    ask({"X-Request-ID": "later"})
    (line,) = (tmp_path / "logs" / LOG_FILE).read_text().splitlines()
    record = json.loads(line)
    assert (record["message"], record["status"], record["request_id"]) == ("images", 200, "mine")


def test_without_a_place_for_the_log_requests_are_still_answered(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING), log_requests_to(tmp_path / "file"):
        assert ask({})[0][0] == 200
    assert "requests are not logged" in caplog.text
