"""Concurrent clients, and the images that they must get."""

import asyncio
import io
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from pipeline.generation.image_generator import ImageGenerator
from pipeline.generation.image_request import ImageRequest
from pipeline.registry.version_download import DownloadedVersion

COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("circle", "square", "star", "heart")
NEGATIVES = ("", "red", "blue", "blurry", "circle", "low quality, bad, worst quality", "grainy", "star")
ONE_LEVEL = 1  # of 255: batches of another size round differently
TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass(frozen=True)
class Answer:
    """An answer's status, the version that made it, its pixels if it is an image, and its seconds."""

    body: dict[str, Any]
    status: int
    version: str
    pixels: np.ndarray | None
    seconds: float
    retry_after: str | None = None


def iter_bodies(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield requests with prompts, negatives, scales and seeds of their own."""
    draw = random.Random(seed)
    for _ in range(count):
        yield {
            "prompt": f"a photo of a {draw.choice(COLOURS)} {draw.choice(SHAPES)}",
            "negative_prompt": draw.choice(NEGATIVES),
            "scale": draw.choice((0.5, 0.75)),
            "seed": draw.randrange(2**32),
        }


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Answer:
    """Return the answer to one request, with status 0 for a lost connection."""
    started = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/images/generations", json=body, headers={"Accept": "image/png"}) as answer:
            content = await answer.read()
            pixels = np.asarray(Image.open(io.BytesIO(content))) if answer.status == 200 else None
            headers, seconds = answer.headers, time.perf_counter() - started
            return Answer(
                body, answer.status, headers.get("x-model-version", ""), pixels, seconds, headers.get("retry-after")
            )
    except (aiohttp.ClientError, TimeoutError):
        return Answer(body, 0, "", None, time.perf_counter() - started)


async def ask_all(url: str, bodies: list[dict[str, Any]], clients: int) -> list[Answer]:
    """Send requests by clients that each wait for their answer before the next request."""
    left, answers = iter(bodies), []

    async def run(session: aiohttp.ClientSession) -> None:
        for body in left:
            answers.append(await ask(session, url, body))

    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(run(session) for _ in range(clients)))
    return answers


class ExpectedImages:
    """The images of each version, generated in this process, each once."""

    def __init__(self, versions: dict[str, DownloadedVersion]) -> None:
        self._generators = {
            number: ImageGenerator(version.student, scale=version.scale) for number, version in versions.items()
        }
        self._known: dict[tuple[str, ImageRequest], np.ndarray] = {}

    def is_right(self, answer: Answer) -> bool:
        """Tell whether an image is the one of its version."""
        assert answer.pixels is not None
        request = ImageRequest(**answer.body)
        key = answer.version, request
        if key not in self._known:
            (self._known[key],) = self._generators[answer.version].generate([request])
        return int(np.abs(self._known[key].astype(int) - answer.pixels).max()) <= ONE_LEVEL


def time_call(call: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started
