"""Prompts per second that one training worker reads, compared with pyarrow alone, and the time to the first batch.

    python -m benchmarks.preparation run --data /tmp/corpus --keep /tmp/prepared
    python -m benchmarks.prompt_stream --prompts /tmp/prepared/prompts

The stream shuffles, verifies every shard's hash and takes a worker's slice of each batch. pyarrow reads the same column
of the same shards in order, in batches of the same size. Rounds alternate; there is no text encoder.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset

from pipeline import recipe
from pipeline.gpu_specs import GPUS
from pipeline.prompts import prompt_dataset
from pipeline.prompts.prompt_stream import PromptStream
from pipeline.ray_session import start_ray_session
from pipeline.storage import Folder
from pipeline.training.resource_estimate import UTILISATION, estimate

BATCH = 64


def h100_images_per_second() -> float:
    """Return the images per second of SD 2.1's training on an H100, at the utilisation that `--dry-run` assumes."""
    options = recipe.load("sd21", ["train.gpu=H100", 'train.clip_decoder=""', "train.clip_weight=0"])
    images = options.train.batch_size // options.train.num_workers
    return images / estimate(options).step_seconds(GPUS["H100"].flops[options.train.precision])


def read_stream(
    folder: Folder, prepared: prompt_dataset.PromptsManifest, first: int, workers: int
) -> Iterator[list[str]]:
    indices = range(BATCH // workers)
    batches = PromptStream(folder, prepared, 0, BATCH, indices).iter_batches(first, prepared.epoch // BATCH)
    return (batch.prompts for batch in batches)


def read_with_pyarrow(folder: Path) -> Iterator[list[str]]:
    files = sorted(str(file) for file in folder.glob("shard-*.parquet"))
    for batch in pyarrow.dataset.dataset(files).to_batches(columns=["prompt"], batch_size=BATCH):
        yield batch["prompt"].to_pylist()


def measure_rate(batches: Iterator[list[str]]) -> float:
    """Return the prompts per second of an iterator of batches."""
    count, started = 0, time.perf_counter()
    for batch in batches:
        count += len(batch)
    return count / (time.perf_counter() - started)


def time_first_batch(batches: Iterator[list[str]]) -> float:
    """Return the seconds until the first batch."""
    started = time.perf_counter()
    next(batches)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = Folder.from_uri(arguments.prompts)
    prepared = prompt_dataset.load_manifest(folder)
    steps = prepared.epoch // BATCH
    with start_ray_session():
        next(read_stream(folder, prepared, steps - 1, 1))  # starts the processes
        stream, pyarrow_alone = [], []
        for _ in range(arguments.rounds):
            stream.append(measure_rate(read_stream(folder, prepared, 0, 1)))
            pyarrow_alone.append(measure_rate(read_with_pyarrow(arguments.prompts)))
        one_of_64 = measure_rate(read_stream(folder, prepared, 0, 64))
        waits = {
            position: time_first_batch(read_stream(folder, prepared, int(position * steps), 1))
            for position in (0.0, 0.5, 0.99)
        }
    h100 = h100_images_per_second()
    print(f"{prepared.epoch:,} prompts, batches of {BATCH}; medians of {arguments.rounds} rounds")
    print(f"pyarrow alone:     {np.median(pyarrow_alone):>12,.0f} prompts/s")
    share = np.median(stream) / np.median(pyarrow_alone)
    print(f"the stream:        {np.median(stream):>12,.0f} prompts/s, {share:.0%} of it")
    print(f"one worker of 64:  {one_of_64:>12,.0f} prompts/s used, {64 * one_of_64:,.0f} read")
    ratio = np.median(stream) / h100
    print(f"an H100 with SD 2.1 needs {h100:.0f} prompts/s at {UTILISATION:.0%} of its peak: {ratio:,.0f} times less")
    for position, seconds in waits.items():
        print(f"first batch from {position:.0%} of the epoch: {seconds:.2f} s")


if __name__ == "__main__":
    main()
