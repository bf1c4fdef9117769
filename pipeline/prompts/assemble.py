"""Assembly of clean chunks to the shards that training reads: deduplication, then shards of mixed content.

Memory is one column of the corpus, the texts that may be duplicates, and the text of `HELD` bytes of shards at a time.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep.chunk import BAND_COLUMNS, CleaningStats
from datasets_prep.dedup import near_repeats, normal_form, repeats
from pipeline.prompts.clean import CleanedFile
from pipeline.storage import Folder

SCHEMA = pa.schema([("index", pa.int64()), ("prompt", pa.string())])
MAX_HELD_BYTES = 512 * 2**20
BYTES_PER_PROMPT = 256
Write = Callable[..., None]


@dataclass(frozen=True)
class CleanChunk:
    """One clean chunk: rows `first` to `first + rows` of the whole corpus."""

    source: str
    folder: Folder
    name: str
    first: int
    rows: int

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return some of its columns."""
        return self.folder.read_table(self.name, columns)


class Corpus:
    """All clean chunks, in the order of sources, files and rows."""

    def __init__(self, cleaned: Sequence[CleanedFile]) -> None:
        self.parts: list[CleanChunk] = []
        first = 0
        for file in cleaned:
            for name in file.parts:
                rows = pq.ParquetFile(io.BytesIO(file.folder.read(name))).metadata.num_rows
                self.parts.append(CleanChunk(file.input.source, file.folder, name, first, rows))
                first += rows
        self.rows = first

    def column(self, name: str) -> np.ndarray:
        """Return a column of the whole corpus."""
        empty = [np.empty(0, np.uint64)]
        return np.concatenate(empty + [part.read([name])[name].to_numpy() for part in self.parts])

    def prompts(self, rows: np.ndarray) -> list[str]:
        """Return the prompts of some rows, ascending."""
        return [text for part, row_indices in self._by_part(rows) for text in _take_prompts(part, row_indices)]

    def _by_part(self, rows: np.ndarray) -> Iterator[tuple[CleanChunk, np.ndarray]]:
        for part in self.parts:
            low, high = np.searchsorted(rows, (part.first, part.first + part.rows))
            if high > low:
                yield part, rows[low:high] - part.first


def _take_prompts(part: CleanChunk, row_indices: np.ndarray) -> list[str]:
    texts: list[str] = part.read(["prompt"])["prompt"].take(pa.array(row_indices)).to_pylist()
    return texts


def deduplicate(corpus: Corpus, threshold: float, accounts: dict[str, CleaningStats]) -> np.ndarray:
    """Return bool [N], true where a row stays; duplicates are counted in their source's statistics."""
    exact = repeats(corpus.column("key"))
    near = np.zeros_like(exact)
    if threshold:
        near = near_repeats(
            lambda number: corpus.column(BAND_COLUMNS[number]),
            lambda rows: [normal_form(text) for text in corpus.prompts(rows)],
            corpus.rows,
            threshold,
            exact,
        )
    for reason, removed in (("exact duplicate", exact), ("near duplicate", near)):
        for part in corpus.parts:
            row_indices = np.flatnonzero(removed[part.first : part.first + part.rows])
            if len(row_indices):
                accounts[part.source].remove(reason, _take_prompts(part, row_indices))
    kept: np.ndarray = ~(exact | near)
    return kept


def record_distributions(corpus: Corpus, kept: np.ndarray, accounts: dict[str, CleaningStats]) -> None:
    """Record the distributions of what stays."""
    for source, account in accounts.items():
        own = [part for part in corpus.parts if part.source == source]
        tables = [
            part.read(["tokens", "aesthetic"]).filter(pa.array(kept[part.first : part.first + part.rows]))
            for part in own
        ]
        if tables:
            account.measure(pa.concat_tables(tables))


def write_shards(corpus: Corpus, kept: np.ndarray, source: str, rows_per_shard: int, write: Write) -> None:
    """Write a source's prompts in shards, each a random part of the source by the prompts' hashes."""
    parts = [part for part in corpus.parts if part.source == source]
    index, rows = 0, sum(int(kept[part.first : part.first + part.rows].sum()) for part in parts)
    shards = max(1, round(rows / rows_per_shard))
    at_once = max(1, MAX_HELD_BYTES // (rows_per_shard * BYTES_PER_PROMPT))
    for first in range(0, shards, at_once):
        for number, table in _iter_shards(parts, kept, shards, range(first, min(first + at_once, shards))):
            columns = [pa.array(np.arange(index, index + table.num_rows)), table["prompt"]]
            write(f"shard-{source}-{number:05d}.parquet", pa.table(columns, schema=SCHEMA), source=source)
            index += table.num_rows


def _iter_shards(
    parts: Sequence[CleanChunk], kept: np.ndarray, count: int, wanted: range
) -> Iterator[tuple[int, pa.Table]]:
    """Yield those of a source's `count` shards that have rows."""
    held: dict[int, list[pa.Table]] = {number: [] for number in wanted}
    for part in parts:
        table = part.read(["prompt", "key"]).filter(pa.array(kept[part.first : part.first + part.rows]))
        shard_N = (table["key"].to_numpy() % np.uint64(count)).astype(np.int64)
        order = np.argsort(shard_N, kind="stable")
        sorted_ = table.select(["prompt"]).take(pa.array(order))
        edges = np.searchsorted(shard_N[order], np.arange(wanted.start, wanted.stop + 1))
        for number, (first, last) in zip(wanted, pairwise(edges.tolist()), strict=True):
            held[number].append(sorted_.slice(first, last - first))
    for number, tables in held.items():
        shard = pa.concat_tables(tables)
        if shard.num_rows:
            yield number, shard.combine_chunks()
