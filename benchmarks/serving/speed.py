"""The server's speed beside one process of diffusers in a loop, MLflow's server, and the bare call."""

import argparse
import asyncio
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import torch
from PIL import Image

from benchmarks.serving.clients import Answer, ask_all, iter_bodies, time_call
from benchmarks.serving.server import Registry, run_mlflow_server, run_server
from nasa import steer
from pipeline import models
from pipeline.generation.image_generator import ImageGenerator
from pipeline.generation.image_request import ImageRequest

CLIENTS, BATCH = 32, 16
Body = dict[str, Any]


def measure(registry: Registry, options: argparse.Namespace) -> dict[str, Any]:
    """Return medians over rounds in which the ways to serve take turns."""
    pipeline, generator = DiffusersLoop(registry), ImageGenerator(registry.versions["1"].student, batch_size=BATCH)
    seconds: dict[str, list[float]] = {name: [] for name in ("server", "loop", "mlflow")}
    added: list[float] = []
    answers: list[Answer] = []
    log = Path(tempfile.mkdtemp(prefix="serving-")) / "mlflow.log"
    model = f"models:/{registry.name}@champion"
    with run_server(registry) as (url, _), run_mlflow_server(registry.uri, model, log) as scoring:
        asyncio.run(ask_all(url, list(iter_bodies(CLIENTS)), CLIENTS))
        for number in range(options.rounds):
            bodies = list(iter_bodies(options.images, number))
            few = bodies[: max(CLIENTS, options.images // 4)]
            started = time.perf_counter()
            answers += asyncio.run(ask_all(url, bodies, CLIENTS))
            seconds["server"].append((time.perf_counter() - started) / len(bodies))
            seconds["loop"].append(time_call(pipeline.generate_all, few) / len(few))
            seconds["mlflow"].append(time_call(asyncio.run, _score_all(scoring, few)) / len(few))
            added.append(_measure_added_seconds(url, generator, few))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "cores": torch.get_num_threads(),
        f"images/s, {CLIENTS} clients, mixed negatives": round(1 / medians["server"], 1),
        "images/s, one process of diffusers in a loop": round(1 / medians["loop"], 1),
        f"images/s, mlflow models serve, {CLIENTS} clients": round(1 / medians["mlflow"], 1),
        "server against the loop": round(_find_ratio(seconds["loop"], seconds["server"]), 2),
        "server against mlflow models serve": round(_find_ratio(seconds["mlflow"], seconds["server"]), 2),
        "added by the server to a call with as many threads, one client, ms": round(1000 * statistics.median(added), 1),
        "a request with a negative against one without, in the same batches": round(_compare_requests(answers), 3),
        **_compare_negatives(generator),
    }


def _compare_requests(answers: list[Answer]) -> float:
    """Return the median seconds of the requests with a negative prompt, against those of the others."""
    with_negative, without = (
        [answer.seconds for answer in answers if bool(answer.body["negative_prompt"]) is has_negative]
        for has_negative in (True, False)
    )
    return statistics.median(with_negative) / statistics.median(without)


def _find_ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(first / second for first, second in zip(slow, fast, strict=True))


class DiffusersLoop:
    """A process that calls the student's pipeline for one image after another, with `steer`."""

    def __init__(self, registry: Registry) -> None:
        student = registry.versions["1"].student
        self._pipe, self._options = models.load_pipeline(student), models.build_call_options(student)

    def generate_all(self, bodies: list[Body]) -> list[bytes]:
        """Return one PNG a request."""
        return [self._generate(body) for body in bodies]

    def _generate(self, body: Body) -> bytes:
        negative = body["negative_prompt"] or None
        with steer(self._pipe, negative, body["scale"]):
            noise = torch.Generator().manual_seed(body["seed"])
            image = self._pipe(prompt=body["prompt"], generator=noise, **self._options).images[0]
        return _encode(image)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


async def _score_all(url: str, bodies: list[Body]) -> None:
    left = iter(bodies)

    async def run(session: aiohttp.ClientSession) -> None:
        for body in left:
            headers = {"Content-Type": "application/json"}
            async with session.post(url, data=json.dumps({"dataframe_records": [body]}), headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(run(session) for _ in range(CLIENTS)))


def _measure_added_seconds(url: str, generator: ImageGenerator, bodies: list[Body]) -> float:
    """Return the median over requests, one at a time, of the server's seconds less those of the bare call.

    The bare call has as many threads as a replica: one fewer than the machine's cores.
    """
    answers = asyncio.run(ask_all(url, bodies, 1))

    def generate(body: Body) -> bytes:
        return _encode(Image.fromarray(generator.generate([ImageRequest(**body)])[0]))

    cores = torch.get_num_threads()
    torch.set_num_threads(max(1, cores - 1))
    bare = [time_call(generate, body) for body in bodies]
    torch.set_num_threads(cores)
    return statistics.median(answer.seconds for answer in answers) - statistics.median(bare)


def _compare_negatives(generator: ImageGenerator, pairs: int = 15) -> dict[str, float]:
    """Return the seconds of a batch by how many of its requests have a negative prompt, against none."""
    plain = [ImageRequest("a photo of a shape", seed) for seed in range(BATCH)]
    negative = [ImageRequest("a photo of a shape", seed, "red", 0.5) for seed in range(BATCH)]
    batches = {"half": [*plain[: BATCH // 2], *negative[BATCH // 2 :]], "all": negative}
    ratios: dict[str, list[float]] = {name: [] for name in batches}
    for _ in range(pairs):
        base = time_call(generator.generate, plain)
        for name, requests in batches.items():
            ratios[name].append(time_call(generator.generate, requests) / base)
    return {
        f"a batch with negatives in {name} of its {BATCH} requests, against none": round(statistics.median(values), 3)
        for name, values in ratios.items()
    }
