"""The Ray Serve deployment that holds a student and generates images in batches."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import apply_environment, logging_setup
from pipeline.errors import UserError
from pipeline.evaluation.image_store import encode_png
from pipeline.generation.image_generator import ImageGenerator
from pipeline.generation.image_request import ImageRequest
from pipeline.registry.version_cache import fetch_version, find_version
from pipeline.serving.alias_follower import AliasFollower, Served
from pipeline.serving.batch_queue import BatchQueue
from pipeline.serving.metrics import ReplicaMetrics
from pipeline.serving.serving_options import ServingOptions

MAX_FAILED_BATCHES = 3  # in a row, after which Ray Serve starts the replica again


@dataclass(frozen=True)
class ImageTask:
    """One image to generate before a deadline, in seconds of `time.time`."""

    request: ImageRequest
    deadline: float


@dataclass(frozen=True)
class ImageResult:
    """A PNG, and what made it; an applied scale of 0 is none."""

    png: bytes
    version: str
    seed: int
    scale: float


@dataclass(frozen=True)
class ServedModel:
    """The version in service, for clients; `alarm` says why a newer one is not."""

    version: str
    size: tuple[int, int]
    scale: float
    model_card: str
    alarm: str


@dataclass(frozen=True)
class Student:
    """A version's model card, and the generator of its images."""

    model_card: str
    generator: ImageGenerator


def _require_content(images: Sequence[np.ndarray]) -> None:
    """Reject images of a single colour, as weights that are not numbers make them."""
    if all(image.min() == image.max() for image in images):
        raise UserError("student: its images have a single colour.")


class StudentReplica:
    """Generates images with the version that an alias names, and takes over the next one without a pause."""

    def __init__(self, options: ServingOptions) -> None:
        apply_environment()
        logging_setup.configure()
        self.options = options
        self.metrics = ReplicaMetrics(options.name, options.alias)
        self._failed_batches = 0
        threads = max(1, round(options.cpus))
        self._denoising = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._encoding = ThreadPoolExecutor(threads)
        self._batches = BatchQueue(self._generate_batch, options.batch_size, options.batch_wait_ms / 1000)
        uri, name, alias = options.tracking_uri, options.name, options.alias
        self.follower: AliasFollower[Student] = AliasFollower(lambda: find_version(uri, name, alias), self._load)
        self.follower.follow(options.poll_seconds, self._report_version)
        self._report_version()

    def _load(self, number: str) -> Student:
        """Return a version that has generated an image, so that its first request is not slow."""
        version = fetch_version(self.options.tracking_uri, self.options.name, number)
        device = "cuda" if torch.cuda.is_available() and self.options.gpus else "cpu"
        generator = ImageGenerator(
            version.student,
            device,
            getattr(torch, self.options.dtype),
            self.options.batch_size,
            version.scale,
            self.metrics.observe_stage,
        )
        for size in {1, self.options.batch_size}:
            _require_content(
                generator.generate([ImageRequest("warm-up", seed, "warm-up", 0.5) for seed in range(size)])
            )
        return Student(version.model_card, generator)

    def _report_version(self) -> None:
        self.metrics.report_version(self.follower.current.number, self.follower.has_broken_version)

    async def generate(self, task: ImageTask) -> ImageResult:
        """Return one image.

        Raises:
            TimeoutError: Its turn came after its deadline.
        """
        generated = await self._batches.submit((task, time.time()))
        if generated is None:
            raise TimeoutError("timeout: the request waited until its deadline.")
        served, pixels = generated
        applied = served.model.generator.get_applied_scale(task.request)
        png = await asyncio.get_running_loop().run_in_executor(self._encoding, self._encode_png, pixels)
        self.metrics.count_image(served.number, task.request.method if applied else "plain")
        return ImageResult(png, served.number, task.request.seed, applied)

    async def _generate_batch(
        self, arrivals: Sequence[tuple[ImageTask, float]]
    ) -> list[tuple[Served[Student], np.ndarray] | None]:
        """Return the version and the pixels of each task, or None if its deadline is over."""
        started, served = time.time(), self.follower.current
        for _, arrived in arrivals:
            self.metrics.observe_stage("queue", started - arrived)
        places = [place for place, (task, _) in enumerate(arrivals) if task.deadline > started]
        requests = [arrivals[place][0].request for place in places]
        images = await asyncio.get_running_loop().run_in_executor(self._denoising, self._generate, served, requests)
        made = dict(zip(places, images, strict=True))
        return [(served, made[place]) if place in made else None for place in range(len(arrivals))]

    def _generate(self, served: Served[Student], requests: Sequence[ImageRequest]) -> list[np.ndarray]:
        generator = served.model.generator
        try:
            images = generator.generate(requests)
        except Exception:
            self._failed_batches += 1
            raise
        self._failed_batches = 0
        self.metrics.report_batch(len(requests), generator)
        return images

    def _encode_png(self, pixels: np.ndarray) -> bytes:
        started = time.perf_counter()
        png = encode_png(pixels)
        self.metrics.observe_stage("png", time.perf_counter() - started)
        return png

    async def describe(self) -> ServedModel:
        """Return what is served."""
        served, alarm = self.follower.current, self.follower.alarm
        student = served.model
        return ServedModel(served.number, student.generator.size, student.generator.scale, student.model_card, alarm)

    def check_health(self) -> None:
        """Let Ray Serve replace a replica whose batches fail, as those of a GPU in an error state do."""
        if self._failed_batches >= MAX_FAILED_BATCHES:
            raise UserError(f"replica: {self._failed_batches} batches in a row failed.")
