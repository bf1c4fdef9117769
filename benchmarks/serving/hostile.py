"""Hostile requests: none is answered by an internal error, and the server does not grow."""

import argparse
import asyncio
import collections
import json
import random
import string
from collections.abc import Callable
from typing import Any

import aiohttp
import psutil

from benchmarks.serving.clients import TIMEOUT, ExpectedImages, ask, iter_bodies
from benchmarks.serving.server import Registry, measure_memory, run_server

CLIENTS = 16
PATHS = ("/v1/images/generations", "/v1/models", "/v1/models/../../etc/passwd/card", "/%00", "/docs?x=%ff", "/nothing")
HEADERS = (
    {},
    {"Host": "attacker.example"},
    {"Content-Length": "-5"},
    {"Accept": "image/png"},
    {"X-Request-ID": "a" * 9000},
)
Request = tuple[str, str, bytes, dict[str, str]]


def measure(registry: Registry, options: argparse.Namespace) -> dict[str, Any]:
    """Return how many answers each status has, and the server's memory before and after."""
    with run_server(registry) as (url, server):
        return asyncio.run(_run(registry, url, server, options.requests))


async def _run(registry: Registry, url: str, server: psutil.Process, count: int) -> dict[str, Any]:
    statuses: collections.Counter[int] = collections.Counter()
    draw = random.Random(0)
    await _send([draw_request(draw) for _ in range(count // 5)], url, statuses)
    before = measure_memory(server)
    await _send([draw_request(draw) for _ in range(count - count // 5)], url, statuses)
    after = measure_memory(server)
    expected = ExpectedImages(registry.versions)
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        answers = [await ask(session, url, body) for body in iter_bodies(8)]
    return {
        "requests": count,
        "answers by status (0: a closed connection)": {str(status): statuses[status] for status in sorted(statuses)},
        "answers 500": sum(number for status, number in statuses.items() if status >= 500 and status != 503),
        "MiB after a fifth of them, and after all": [round(before), round(after)],
        "right images afterwards, of 8": sum(answer.status == 200 and expected.is_right(answer) for answer in answers),
    }


async def _send(requests: list[Request], url: str, statuses: "collections.Counter[int]") -> None:
    left = iter(requests)

    async def run(session: aiohttp.ClientSession) -> None:
        for method, path, content, headers in left:
            try:
                async with session.request(method, f"{url}{path}", data=content, headers=headers) as answer:
                    await answer.read()
                    statuses[answer.status] += 1
            except (aiohttp.ClientError, TimeoutError, ValueError):
                statuses[0] += 1

    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        await asyncio.gather(*(run(session) for _ in range(CLIENTS)))


def draw_request(draw: random.Random) -> Request:
    """Return method, path, body and headers of a request that no client of good will sends."""
    is_image = draw.random() < 0.9
    path = PATHS[0] if is_image else draw.choice(PATHS)
    method = "POST" if is_image else draw.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"))
    headers = {
        "Content-Type": "application/json" if draw.random() < 0.95 else "text/xml",
        **(draw.choice(HEADERS) if draw.random() < 0.1 else {}),
    }
    return method, path, draw.choice(BODIES)(draw), headers


def _draw_fields(draw: random.Random) -> bytes:
    fields = {"prompt": "a cat", draw.choice(FIELDS): draw.choice(VALUES), draw.choice(FIELDS): draw.choice(VALUES)}
    return json.dumps(fields, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def _draw_noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice((0, 1, 50, 5000, 70_000)))


def _draw_cut(draw: random.Random) -> bytes:
    content = _draw_fields(draw)
    return content[: draw.randrange(len(content))]


def _draw_nested(draw: random.Random) -> bytes:
    return draw.choice((b"[" * 20_000, b'{"prompt":' * 5000, b'{"a":' * 500 + b"1" + b"}" * 500))


def _draw_unicode(draw: random.Random) -> bytes:
    text = "".join(draw.choice(LETTERS) for _ in range(draw.choice((1, 30, 3999, 4000, 4001))))
    return json.dumps({"prompt": text, "negative_prompt": text[::-1]}, ensure_ascii=draw.random() < 0.5).encode()


LETTERS = string.printable + "äß漢字🎨\u202e\u0000\u200d\ufeff\uffff\U0001d4b3"
FIELDS = ("prompt", "negative_prompt", "n", "size", "seed", "scale", "method", "model", "timeout", "user", "x", "")
VALUES = (
    *(
        None,
        True,
        "",
        "9" * 3000,
        0,
        1,
        -1,
        10,
        11,
        10**9,
        2**53,
        2**64,
        10**400,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        [],
        {},
        [[]],
        {"a": {}},
        "1024x1024",
        "-1x-1",
        "nasa",
        "cfg",
        "'; DROP TABLE",
        "../../etc/passwd",
        "\ud800",
        "\x00",
    ),
)
BODIES: tuple[Callable[[random.Random], bytes], ...] = (
    *(_draw_fields, _draw_fields, _draw_fields, _draw_fields, _draw_noise, _draw_cut, _draw_nested, _draw_unicode),
)
