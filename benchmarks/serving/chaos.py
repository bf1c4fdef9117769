"""Load with promotions, rollbacks and killed replicas: no image is wrong, and no request is lost."""

import argparse
import asyncio
import random
import statistics
import time
from typing import Any

import aiohttp
import psutil

from benchmarks.serving.clients import TIMEOUT, Answer, ExpectedImages, ask, iter_bodies
from benchmarks.serving.server import Registry, list_replicas, measure_memory, run_server
from pipeline.registry import version_management

CLIENTS, CHANGES, KILL_SECONDS, BODIES = 8, 20, 30, 48
RETRIABLE = (429, 503)


def measure(registry: Registry, options: argparse.Namespace) -> dict[str, Any]:
    """Return what became of the requests; every image is compared with that of its version."""
    expected = ExpectedImages(registry.versions)
    with run_server(registry, "--min-replicas", "2", "--max-replicas", "2", "--cpus", "0.5") as (url, server):
        return asyncio.run(_run(registry, url, server, expected, 60 * options.minutes))


async def _run(
    registry: Registry, url: str, server: psutil.Process, expected: ExpectedImages, seconds: float
) -> dict[str, Any]:
    answers: list[Answer] = []
    over = asyncio.Event()
    await asyncio.sleep(5)
    memory = [measure_memory(server)]
    tasks = [asyncio.create_task(_keep_asking(url, number, over, answers)) for number in range(CLIENTS)]
    promotions = asyncio.create_task(_keep_promoting(registry, seconds / CHANGES, over))
    kills = asyncio.create_task(_keep_killing(server, over, memory))
    await asyncio.sleep(seconds)
    over.set()
    changes, killed = await promotions, await kills
    await asyncio.gather(*tasks)
    images = [answer for answer in answers if answer.status == 200]
    return {
        "minutes": seconds / 60,
        "images": len(images),
        "wrong images": sum(not expected.is_right(answer) for answer in images),
        "answers 429 or 503 with Retry-After": sum(_may_retry(answer) for answer in answers),
        "lost requests": sum(answer.status != 200 and not _may_retry(answer) for answer in answers),
        "promotions and rollbacks": changes,
        "killed replicas": killed,
        "versions seen": sorted({answer.version for answer in images}),
        "seconds of a request, median": round(statistics.median(answer.seconds for answer in images), 3),
        "seconds of a request, largest": round(max(answer.seconds for answer in images), 1),
        "MiB of the server before each kill": [round(value) for value in memory],
    }


def _may_retry(answer: Answer) -> bool:
    return answer.status in RETRIABLE and answer.retry_after is not None


async def _keep_asking(url: str, number: int, over: asyncio.Event, answers: list[Answer]) -> None:
    bodies, draw = list(iter_bodies(BODIES)), random.Random(number)
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        while not over.is_set():
            answers.append(await ask(session, url, draw.choice(bodies)))


async def _keep_promoting(registry: Registry, pause: float, over: asyncio.Event) -> int:
    """Promote version 2 and roll back in turn; return how often the champion changed."""
    changes = 0
    while not await _wait(over, pause):
        if changes % 2:
            await asyncio.to_thread(version_management.roll_back, registry.uri, registry.name)
        else:
            await asyncio.to_thread(version_management.promote, registry.uri, registry.name, "2")
        changes += 1
    return changes


async def _keep_killing(server: psutil.Process, over: asyncio.Event, memory: list[float]) -> int:
    """Kill a replica now and then, with the signal of an out-of-memory killer; return how many."""
    killed, draw = 0, random.Random(0)
    while not await _wait(over, KILL_SECONDS):
        memory.append(measure_memory(server))
        draw.choice(list_replicas(server)).kill()
        killed += 1
    return killed


async def _wait(over: asyncio.Event, seconds: float) -> bool:
    """Return True as soon as the load is over, and False after some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not over.is_set():
        await asyncio.sleep(0.1)
    return over.is_set()
