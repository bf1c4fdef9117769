"""The prompt stream: from Parquet shards to each worker's batches, in one order for any number of workers."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data import DataIterator, Dataset, ExecutionOptions
from ray.train import DataConfig

from datasets_prep.negatives import contradicts
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.prepare import NEGATIVES
from pipeline.storage import Folder

DATASET = "prompts"
_REDRAWS = 16


def check(folder: Folder) -> dict[str, Any]:
    """The manifest of prepared prompts, after comparing every file with it."""
    record = manifest.read(folder, "prepare")
    for name, expected in record["files"].items():
        if not folder.has(name):
            raise UserError(f"{folder.uri}/{name}: missing; the manifest lists it; run `python -m jobs prepare` again")
        content = folder.read(name)
        if manifest.file_hash(content) != expected["sha256"]:
            raise UserError(
                f"{folder.uri}/{name}: {len(content)} bytes that differ from the {expected['bytes']} in the manifest; "
                "run `python -m jobs prepare` again"
            )
    return record


def dataset(folder: Folder, record: dict[str, Any]) -> Dataset:
    """The prompts in shard order.

    Read by Ray Data's first Parquet reader: the second starts up to 32 processes for each worker and epoch to read
    the footers of what is a few megabytes of text.
    """
    ray.data.DataContext.get_current().use_datasource_v2 = False
    files = [f"{folder.path}/{name}" for name in sorted(record["files"]) if name != NEGATIVES]
    return ray.data.read_parquet(files, filesystem=folder.filesystem, columns=["index", "prompt"])


def data_config() -> DataConfig:
    """Every worker sees every batch and keeps its part, so the order depends on the shards alone."""
    return DataConfig(datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True))


def batches(stream: DataIterator, global_batch: int, rank: int, world_size: int, start: int) -> Iterator[list[str]]:
    """This worker's prompts for the steps `start`, `start + 1`, ... without end, epoch after epoch.

    A step takes the next `global_batch` rows and each worker its equal, consecutive part. The rows that
    do not fill a batch at an epoch's end are left out of that epoch.
    """
    own = slice(rank * global_batch // world_size, (rank + 1) * global_batch // world_size)
    to_skip = start
    for epoch in count():
        steps = 0
        for batch in stream.iter_batches(batch_size=global_batch, batch_format="numpy", drop_last=True):
            steps += 1
            if to_skip:
                to_skip -= 1
                continue
            yield batch["prompt"][own].tolist()
        if not steps:
            raise UserError(f"prompts: epoch {epoch} has fewer than one batch of {global_batch}")
        to_skip %= steps


@dataclass(frozen=True)
class NegativeSampler:
    """Draws a negative for each prompt, by weight, as a function of (seed, step, the prompt's place in the batch)."""

    texts: list[str]
    cumulative: np.ndarray
    avoid_contradictions: bool

    @staticmethod
    def read(folder: Folder, *, avoid_contradictions: bool) -> "NegativeSampler":
        table = pq.read_table(io.BytesIO(folder.read(NEGATIVES)))
        return NegativeSampler.of(table, avoid_contradictions=avoid_contradictions)

    @staticmethod
    def of(corpus: pa.Table, *, avoid_contradictions: bool) -> "NegativeSampler":
        """`corpus` is of `datasets_prep.negatives`."""
        weights = corpus["weight"].to_numpy().astype(np.float64)
        return NegativeSampler(
            corpus["negative_prompt"].to_pylist(), np.cumsum(weights / weights.sum()), avoid_contradictions
        )

    def draw(
        self, prompts: Sequence[str], seed: int, step: int, places: Sequence[int], *, one: bool = False
    ) -> list[str]:
        """`places` are the prompts' in the global batch. With `one`, all of them have the same negative."""
        if one:
            return [self._one(prompts, np.random.default_rng((seed, step)))] * len(prompts)
        pairs = zip(prompts, places, strict=True)
        return [self._one([prompt], np.random.default_rng((seed, step, place))) for prompt, place in pairs]

    def _one(self, prompts: Sequence[str], rng: np.random.Generator) -> str:
        """Where a negative would deny what a prompt asks for, draw again, a bounded number of times."""
        for _ in range(_REDRAWS):
            text = self.texts[min(int(np.searchsorted(self.cumulative, rng.random())), len(self.texts) - 1)]
            if not (self.avoid_contradictions and any(contradicts(prompt, text) for prompt in prompts)):
                break
        return text
