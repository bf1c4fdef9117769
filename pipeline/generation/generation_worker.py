"""The worker of a batch generation: a Ray Data actor that makes the images of one chunk at a time."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline import apply_environment, logging_setup
from pipeline.evaluation.image_store import encode_png
from pipeline.generation.generation_layout import (
    IMAGES,
    INDEX,
    name_chunk,
    name_image,
    name_index_piece,
    remove_partial_files,
)
from pipeline.generation.image_generator import ImageGenerator
from pipeline.generation.image_request import ImageRequest
from pipeline.hashing import hash_bytes
from pipeline.registry.version_cache import fetch_version
from pipeline.storage import Folder

WRITERS = 8  # threads that encode and write images while the next ones are generated
SCHEMA = pa.schema(
    {
        "image": pa.int64(),
        "file": pa.string(),
        "row": pa.int64(),
        "prompt": pa.string(),
        "negative_prompt": pa.string(),
        "seed": pa.int64(),
        "scale": pa.float64(),
        "method": pa.string(),
        "version": pa.string(),
        "path": pa.string(),
        "sha256": pa.string(),
    }
)


@dataclass(frozen=True)
class WorkerConfig:
    """Plain data for an actor; the folder by its URI."""

    tracking_uri: str
    name: str
    version: str
    folder: str
    dtype: str
    batch_size: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class BatchImage:
    """An image of the batch: its number, the file and row that ask for it, and its request."""

    image: int
    file: str
    row: int
    request: ImageRequest


def encode_images(images: list[BatchImage]) -> str:
    """Return a chunk's images as JSON, a single cell of a Ray Data block."""
    return json.dumps([asdict(image) for image in images])


def decode_images(text: str) -> list[BatchImage]:
    """Return the images of `encode_images`."""
    return [BatchImage(**{**values, "request": ImageRequest(**values["request"])}) for values in json.loads(text)]


class GenerationWorker:
    """Writes the images of chunks, and each chunk's index after them; maps a chunk to its number of images."""

    def __init__(self, config: WorkerConfig) -> None:
        apply_environment()
        logging_setup.configure()
        torch.set_num_threads(max(1, int(config.cpus)))
        self.config, self.folder = config, Folder.from_uri(config.folder)

    @cached_property
    def generator(self) -> ImageGenerator:
        """The student, loaded on the first batch: an exception in a constructor is only an ActorDiedError."""
        config = self.config
        version = fetch_version(config.tracking_uri, config.name, config.version)
        device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, config.dtype)
        return ImageGenerator(version.student, device, dtype, config.batch_size, version.scale)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write a batch of chunks; return their numbers of images."""
        chunks = zip(batch["chunk"], batch["images"], strict=True)
        return {"images": np.array([self.write_chunk(int(chunk), decode_images(text)) for chunk, text in chunks])}

    def write_chunk(self, chunk: int, images: list[BatchImage]) -> int:
        """Write the images of a chunk, then its index, whose presence says that the chunk is complete."""
        remove_partial_files(self.folder / IMAGES / name_chunk(chunk))
        with ThreadPoolExecutor(WRITERS) as writers:
            written = [future for group in self._group(images) for future in self._submit(writers, chunk, group)]
            rows = [future.result() for future in written]
        table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["image"]), SCHEMA)
        (self.folder / INDEX).write_table(name_index_piece(chunk), table)
        return len(rows)

    def _group(self, images: list[BatchImage]) -> Iterator[list[BatchImage]]:
        """Yield batches of images; those of one method share the passes of the denoiser."""
        ordered = sorted(images, key=lambda image: image.request.method)
        for first in range(0, len(ordered), self.config.batch_size):
            yield ordered[first : first + self.config.batch_size]

    def _submit(
        self, writers: ThreadPoolExecutor, chunk: int, images: list[BatchImage]
    ) -> list[Future[dict[str, Any]]]:
        pixels = self.generator.generate([image.request for image in images])
        return [writers.submit(self._write, chunk, *pair) for pair in zip(images, pixels, strict=True)]

    def _write(self, chunk: int, image: BatchImage, pixels: np.ndarray) -> dict[str, Any]:
        """Write an image and return its row of the index; a scale of 0 says that no negative prompt was applied."""
        png, path = encode_png(pixels), name_image(chunk, image.image)
        self.folder.write(path, png)
        values = {**asdict(image.request), "scale": self.generator.get_applied_scale(image.request)}
        place = {"image": image.image, "file": image.file, "row": image.row}
        return {**place, **values, "version": self.config.version, "path": path, "sha256": hash_bytes(png)}
