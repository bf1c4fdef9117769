"""The prompt stream: batches for each worker from prepared shards, in the same order for any number of workers.

`datasets_prep.epoch_sampler` defines the order. Step s of training takes the positions s * B to (s + 1) * B, across
epochs, so the step alone determines which prompts were seen. Each worker reads with Ray Data its part of each batch.
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

RANGE_SIZE = 65_536  # positions per reading task
ENCODED_STEPS_PER_TASK = 16  # small, since the encoders' output is a thousand times as large as texts
MAX_TASKS = 2  # concurrent tasks
TASK_CPUS = 0  # a light task, which must run although the workers have reserved all cores


@dataclass(frozen=True)
class PromptBatch:
    """A worker's part of a batch: its prompts, and with encoders the embeddings of the prompts and their negatives."""

    prompts: list[str]
    encoded: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderPool:
    """The encoder actors of one worker: their number, resources per actor, class and configuration."""

    num_actors: int
    cpus: float
    gpus: float
    actor_class: type
    config: Any


@dataclass(frozen=True)
class PromptStream:
    """A worker's prompts, at `sample_indices` of each global batch. `prepared` is the manifest of `folder`."""

    folder: Folder
    prepared: PromptsManifest
    seed: int
    batch_size: int
    sample_indices: range

    @cached_property
    def sampler(self) -> EpochSampler:
        """The sampler of the epochs."""
        return self.prepared.build_sampler(self.seed)

    @cached_property
    def shards(self) -> list[list[str]]:
        """The names of each source's shards, in the sampler's order."""
        return [self.prepared.list_shards(source.name) for source in self.sampler.sources]

    def iter_batches(
        self, first: int, last: int, encoders: EncoderPool | None = None
    ) -> Generator[PromptBatch, None, None]:
        """Yield the batches of the steps `first` to `last`; earlier prompts are not read."""
        size = ENCODED_STEPS_PER_TASK * self.batch_size if encoders else RANGE_SIZE
        ranges = [
            {"first": span.first, "source_N": span.source_N.tobytes(), "source_offsets": list(span.source_offsets)}
            for span in self.sampler.iter_ranges(first * self.batch_size, last * self.batch_size, size)
        ]
        if not ranges:
            return
        stream: ray.data.Dataset = ray.data.from_items(ranges, override_num_blocks=len(ranges))
        stream = stream.map_batches(
            self._read, batch_size=1, num_cpus=TASK_CPUS, concurrency=min(MAX_TASKS, len(ranges))
        )
        if encoders:
            stream = stream.map_batches(
                encoders.actor_class,
                fn_constructor_args=(encoders.config,),
                batch_size=len(self.sample_indices),
                num_cpus=encoders.cpus,
                num_gpus=encoders.gpus,
                concurrency=encoders.num_actors,
            )
        stream.context.execution_options.preserve_order = True
        for batch in iter_batches(stream, len(self.sample_indices)):
            names = [name for name in ("embeds", "attention_mask") if name in batch]
            encoded: dict[str, np.ndarray] = {name: batch[name] for name in names}
            yield PromptBatch(batch["prompt"].tolist(), encoded)

    def _read(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        span = SampleRange(
            int(batch["first"][0]), np.frombuffer(batch["source_N"][0], np.uint8), tuple(batch["source_offsets"][0])
        )
        prompts = self.read_prompts(span).to_numpy(zero_copy_only=False)
        return {"prompt": prompts, "position": span.first + np.flatnonzero(self._belongs_here(span))}

    def _belongs_here(self, span: SampleRange) -> np.ndarray:
        """Return bool [N], true where a position's index in its batch belongs to this worker."""
        position_N = span.first + np.arange(len(span.source_N))
        mask_N: np.ndarray = (position_N - self.sample_indices.start) % self.batch_size < len(self.sample_indices)
        return mask_N

    def read_prompts(self, span: SampleRange) -> pa.Array:
        """Return this worker's prompts in a range, in order."""
        mask_N = self._belongs_here(span)
        rows = self.sampler.locate_rows(span)
        source_M, file_M, row_M = rows.source_N[mask_N], rows.file_N[mask_N], rows.row_N[mask_N]
        parts, indices = [], [np.empty(0, np.int64)]
        for source, file in np.unique(np.stack([source_M, file_M]), axis=1).T.tolist():
            chosen = np.flatnonzero((source_M == source) & (file_M == file))
            name = self.shards[source][file]
            texts = prompt_dataset.read_shard(self.folder, name, self.prepared.files[name].sha256)
            parts.append(texts.take(pa.array(row_M[chosen])).combine_chunks())
            indices.append(chosen)
        order = np.argsort(np.concatenate(indices))
        return pa.chunked_array(parts, pa.string()).take(pa.array(order)).combine_chunks()
