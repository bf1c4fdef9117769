"""Prompts a second into one training worker, beside what pyarrow alone reads, and the time to the first batch.

    python -m benchmarks.preparation run --data /tmp/corpus --keep /tmp/prepared
    python -m benchmarks.prompt_stream --prompts /tmp/prepared/prompts

The stream shuffles, checks every shard's hash, and takes a worker's part of each batch; pyarrow reads the same columns
of the same shards in their order, into batches as large. Both in alternating rounds; without a text encoder.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset

from pipeline import recipe
from pipeline.gpus import GPUS
from pipeline.prompts import prompt_dataset
from pipeline.prompts.prompt_stream import PromptStream
from pipeline.session import ray_session
from pipeline.storage import Folder
from pipeline.training.estimate import UTILISATION, estimate

BATCH = 64


def consumed() -> float:
    """Images a second that an H100 trains SD2.1 with, at the utilisation that `--dry-run` assumes."""
    options = recipe.load("sd21", ["train.gpu=H100", 'train.clip_decoder=""', "train.clip_weight=0"])
    images = options.train.batch_size // options.train.num_workers
    return images / estimate(options).step_seconds(GPUS["H100"].flops[options.train.precision])


def stream(folder: Folder, prepared: prompt_dataset.PromptsManifest, first: int, workers: int) -> Iterator[list[str]]:
    places = range(BATCH // workers)
    batches = PromptStream(folder, prepared, 0, BATCH, places).batches(first, prepared.epoch // BATCH)
    return (batch.prompts for batch in batches)


def plain(folder: Path) -> Iterator[list[str]]:
    files = sorted(str(file) for file in folder.glob("shard-*.parquet"))
    for batch in pyarrow.dataset.dataset(files).to_batches(columns=["prompt"], batch_size=BATCH):
        yield batch["prompt"].to_pylist()


def rate(batches: Iterator[list[str]]) -> float:
    count, started = 0, time.perf_counter()
    for batch in batches:
        count += len(batch)
    return count / (time.perf_counter() - started)


def first_batch(batches: Iterator[list[str]]) -> float:
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
    with ray_session():
        next(stream(folder, prepared, steps - 1, 1))  # processes are started
        ours, alone = [], []
        for _ in range(arguments.rounds):
            ours.append(rate(stream(folder, prepared, 0, 1)))
            alone.append(rate(plain(arguments.prompts)))
        rank_of_64 = rate(stream(folder, prepared, 0, 64))
        waits = {share: first_batch(stream(folder, prepared, int(share * steps), 1)) for share in (0.0, 0.5, 0.99)}
    h100 = consumed()
    print(f"{prepared.epoch:,} prompts, batches of {BATCH}; medians of {arguments.rounds} rounds")
    print(f"pyarrow alone:     {np.median(alone):>12,.0f} prompts/s")
    print(f"the stream:        {np.median(ours):>12,.0f} prompts/s, {np.median(ours) / np.median(alone):.0%} of it")
    print(f"one worker of 64:  {rank_of_64:>12,.0f} prompts/s of its own, {64 * rank_of_64:,.0f} read")
    times = f"the stream gives {np.median(ours) / h100:,.0f} times that"
    print(f"an H100 with SD2.1 consumes {h100:.0f} a second at {UTILISATION:.0%} of its peak: {times}")
    for share, seconds in waits.items():
        print(f"first batch from {share:.0%} of the epoch: {seconds:.2f} s")


if __name__ == "__main__":
    main()
