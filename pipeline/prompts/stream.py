"""The prompt stream: from prepared shards to each worker's batches, in one order for any number of workers.

The order is `datasets_prep.epoch_sampler`'s: step s of training takes its positions s * B to (s + 1) * B, across the
ends of epochs, so the step alone says what was seen. Each worker reads with Ray Data and keeps its part of each batch.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from datasets_prep.epoch_sampler import EpochSampler, SampleRange
from pipeline.prompts import prompt_dataset
from pipeline.prompts.prompt_dataset import PromptsManifest
from pipeline.remote_errors import iter_batches
from pipeline.storage import Folder

RANGE_SIZE = 65_536  # positions that one task reads
STEPS_ENCODED = 16  # of a task where encoders follow, whose output is a thousand times as large
MAX_CONCURRENT_READS = 2  # tasks at a time
CPUS = 0  # of a task: it is light, and must run where the workers have taken every core


@dataclass(frozen=True)
class Batch:
    """A worker's part of a step: its prompts, and where encoders run, the prompts and then their negatives encoded."""

    prompts: list[str]
    encoded: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderPool:
    """The encoding processes of one worker: number, resources, class and its argument."""

    processes: int
    cpus: float
    gpus: float
    make: type
    argument: Any


@dataclass(frozen=True)
class PromptStream:
    """A worker's prompts: those of the global batch's `sample_indices`. `prepared` is the manifest of `folder`."""

    folder: Folder
    prepared: PromptsManifest
    seed: int
    batch_size: int
    sample_indices: range

    @cached_property
    def sampler(self) -> EpochSampler:
        """The sampler of the epochs."""
        return self.prepared.sampler(self.seed)

    @cached_property
    def shards(self) -> list[list[str]]:
        """The names of each source's shards, in the sampler's order."""
        return [self.prepared.shards_of(source.name) for source in self.sampler.sources]

    def batches(self, first: int, last: int, encoders: EncoderPool | None = None) -> Generator[Batch, None, None]:
        """Yield the batches of the steps `first` to `last`; earlier prompts are not read."""
        size = STEPS_ENCODED * self.batch_size if encoders else RANGE_SIZE
        ranges = [
            {"first": span.first, "source_N": span.source_N.tobytes(), "source_offsets": list(span.source_offsets)}
            for span in self.sampler.ranges(first * self.batch_size, last * self.batch_size, size)
        ]
        if not ranges:
            return
        stream: ray.data.Dataset = ray.data.from_items(ranges, override_num_blocks=len(ranges))
        stream = stream.map_batches(
            self._read, batch_size=1, num_cpus=CPUS, concurrency=min(MAX_CONCURRENT_READS, len(ranges))
        )
        if encoders:
            stream = stream.map_batches(
                encoders.make,
                fn_constructor_args=(encoders.argument,),
                batch_size=len(self.sample_indices),
                num_cpus=encoders.cpus,
                num_gpus=encoders.gpus,
                concurrency=encoders.processes,
            )
        stream.context.execution_options.preserve_order = True
        for batch in iter_batches(stream, len(self.sample_indices)):
            names = [name for name in ("embeds", "attention_mask") if name in batch]
            encoded: dict[str, np.ndarray] = {name: batch[name] for name in names}
            yield Batch(batch["prompt"].tolist(), encoded)

    def _read(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        span = SampleRange(
            int(batch["first"][0]), np.frombuffer(batch["source_N"][0], np.uint8), tuple(batch["source_offsets"][0])
        )
        prompts = self.prompts_of(span).to_numpy(zero_copy_only=False)
        return {"prompt": prompts, "position": span.first + np.flatnonzero(self._is_own_sample(span))}

    def _is_own_sample(self, span: SampleRange) -> np.ndarray:
        """Return bool [N]: whether a position's index in the batch belongs to this worker."""
        position_N = span.first + np.arange(len(span.source_N))
        own: np.ndarray = (position_N - self.sample_indices.start) % self.batch_size < len(self.sample_indices)
        return own

    def prompts_of(self, span: SampleRange) -> pa.Array:
        """Return the prompts of consecutive positions, in order."""
        own_N = self._is_own_sample(span)
        rows = self.sampler.locate(span)
        source_M, file_M, row_M = rows.source_N[own_N], rows.file_N[own_N], rows.row_N[own_N]
        found, where = [], [np.empty(0, np.int64)]
        for source, file in np.unique(np.stack([source_M, file_M]), axis=1).T.tolist():
            chosen = np.flatnonzero((source_M == source) & (file_M == file))
            name = self.shards[source][file]
            texts = prompt_dataset.shard(self.folder, name, self.prepared.files[name].sha256)
            found.append(texts.take(pa.array(row_M[chosen])).combine_chunks())
            where.append(chosen)
        back = np.argsort(np.concatenate(where))
        return pa.chunked_array(found, pa.string()).take(pa.array(back)).combine_chunks()
