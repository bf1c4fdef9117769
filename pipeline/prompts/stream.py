"""The prompt stream: from prepared shards to each worker's batches, in one order for any number of workers.

The order is `datasets_prep.order`'s: step s of training takes the positions s * B to (s + 1) * B of it, across the ends
of epochs, so the step alone says what was seen. Each worker reads with Ray Data and keeps its part of each batch.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from datasets_prep.order import Order, Piece
from pipeline.prompts import prepared
from pipeline.remote_errors import iter_batches
from pipeline.storage import Folder

PIECE = 65_536  # positions that one task reads
STEPS_ENCODED = 16  # of a task where encoders follow, whose output is a thousand times as large
AHEAD = 2  # tasks at a time
CPUS = 0  # of a task: it is light, and must run where the workers have taken every core


@dataclass(frozen=True)
class Batch:
    """A worker's part of a step: its prompts, and where encoders run, the prompts and then their negatives encoded."""

    prompts: list[str]
    encoded: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoders:
    """How many processes encode a worker's texts, what each has, and what it is: a class and its one argument."""

    processes: int
    cpus: float
    gpus: float
    make: type
    argument: Any


@dataclass(frozen=True)
class PromptStream:
    """A worker's prompts: those of the global batch's `places`. `record` is the manifest of `folder`."""

    folder: Folder
    record: dict[str, Any]
    seed: int
    batch_size: int
    places: range

    @cached_property
    def order(self) -> Order:
        return prepared.order_of(self.record, self.seed)

    @cached_property
    def shards(self) -> list[list[str]]:
        """The names of each source's, as the order counts them."""
        return [prepared.shards_of(self.record, source.name) for source in self.order.sources]

    def batches(self, first: int, last: int, encoders: Encoders | None = None) -> Generator[Batch, None, None]:
        """Those of the steps `first` to `last`. What was seen before `first` is not read again."""
        size = STEPS_ENCODED * self.batch_size if encoders else PIECE
        pieces = [
            {"first": piece.first, "source_N": piece.source_N.tobytes(), "begins": list(piece.begins)}
            for piece in self.order.pieces(first * self.batch_size, last * self.batch_size, size)
        ]
        if not pieces:
            return
        stream = ray.data.from_items(pieces, override_num_blocks=len(pieces))
        stream = stream.map_batches(self._read, batch_size=1, num_cpus=CPUS, concurrency=min(AHEAD, len(pieces)))
        if encoders:
            stream = stream.map_batches(
                encoders.make,
                fn_constructor_args=(encoders.argument,),
                batch_size=len(self.places),
                num_cpus=encoders.cpus,
                num_gpus=encoders.gpus,
                concurrency=encoders.processes,
            )
        stream.context.execution_options.preserve_order = True
        for batch in iter_batches(stream, len(self.places)):
            encoded = {name: batch[name] for name in ("embeds", "attention_mask") if name in batch}
            yield Batch(batch["prompt"].tolist(), encoded)

    def _read(self, batch: dict[str, Any]) -> dict[str, Any]:
        piece = Piece(int(batch["first"][0]), np.frombuffer(batch["source_N"][0], np.uint8), tuple(batch["begins"][0]))
        prompts = self.of_piece(piece).to_numpy(zero_copy_only=False)
        return {"prompt": prompts, "position": piece.first + np.flatnonzero(self._own(piece))}

    def _own(self, piece: Piece) -> np.ndarray:
        """Bool [N]: whether a position's place in the batch is among this worker's."""
        position_N = piece.first + np.arange(len(piece.source_N))
        own: np.ndarray = (position_N - self.places.start) % self.batch_size < len(self.places)
        return own

    def of_piece(self, piece: Piece) -> pa.Array:
        """Those of consecutive positions, in order."""
        own_N = self._own(piece)
        rows = self.order.locate(piece)
        source_M, file_M, row_M = rows.source_N[own_N], rows.file_N[own_N], rows.row_N[own_N]
        found, where = [], [np.empty(0, np.int64)]
        for source, file in np.unique(np.stack([source_M, file_M]), axis=1).T.tolist():
            chosen = np.flatnonzero((source_M == source) & (file_M == file))
            name = self.shards[source][file]
            texts = prepared.shard(self.folder, name, self.record["files"][name]["sha256"])
            found.append(texts.take(pa.array(row_M[chosen])).combine_chunks())
            where.append(chosen)
        back = np.argsort(np.concatenate(where))
        return pa.chunked_array(found, pa.string()).take(pa.array(back)).combine_chunks()
