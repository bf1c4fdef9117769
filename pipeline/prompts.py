"""The prompt stream: from Parquet shards to each worker's batches, in one order for any number of workers."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import ray.data
from ray.data import DataIterator, Dataset, ExecutionOptions
from ray.train import DataConfig

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.prepare import NEGATIVES
from pipeline.storage import Folder

DATASET = "prompts"


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
