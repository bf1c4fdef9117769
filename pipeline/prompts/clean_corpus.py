"""The cleaned prompts of all sources: deduplication, and shards for training, each a random sample of its source.

Memory holds one column of the corpus, the texts of candidate duplicates, and `MAX_HELD_BYTES` of shards at a time.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep.chunk_cleaning import BAND_COLUMNS, CleaningStats
from datasets_prep.dedup import find_exact_duplicates, find_near_duplicates, normalise_text
from pipeline.prompts.file_cleaning import CleanedFile
from pipeline.storage import Folder

SCHEMA = pa.schema([("index", pa.int64()), ("prompt", pa.string())])
MAX_HELD_BYTES = 512 * 2**20
BYTES_PER_PROMPT = 256
WriteTable = Callable[..., None]


@dataclass(frozen=True)
class CleanChunk:
    """A clean chunk: the rows `first` to `first + rows` of the corpus."""

    source: str
    folder: Folder
    name: str
    first: int
    rows: int

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return columns of the chunk."""
        return self.folder.read_table(self.name, columns)

    def read_kept(self, columns: Sequence[str], kept: np.ndarray) -> pa.Table:
        """Return columns of the rows that are kept; `kept` is bool, one per row of the corpus."""
        return self.read(columns).filter(pa.array(self.slice(kept)))

    def slice(self, values: np.ndarray) -> np.ndarray:
        """Return the chunk's part of an array with one value per row of the corpus."""
        return values[self.first : self.first + self.rows]

    def read_prompts(self, rows: np.ndarray) -> list[str]:
        """Return the prompts of some rows, numbered from the start of the chunk."""
        texts: list[str] = self.read(["prompt"])["prompt"].take(pa.array(rows)).to_pylist()
        return texts


class CleanCorpus:
    """The clean chunks of all sources, in the order of sources, files and rows."""

    def __init__(self, cleaned: Sequence[CleanedFile]) -> None:
        self.chunks: list[CleanChunk] = []
        first = 0
        for file in cleaned:
            for name in file.chunks:
                rows = pq.ParquetFile(io.BytesIO(file.folder.read(name))).metadata.num_rows
                self.chunks.append(CleanChunk(file.source_file.source, file.folder, name, first, rows))
                first += rows
        self.rows = first

    def read_column(self, name: str) -> np.ndarray:
        """Return a column of the whole corpus."""
        empty = [np.empty(0, np.uint64)]
        return np.concatenate(empty + [chunk.read([name])[name].to_numpy() for chunk in self.chunks])

    def read_prompts(self, rows: np.ndarray) -> list[str]:
        """Return the prompts of some rows, ascending."""
        return [
            text for chunk, chunk_rows in self._group_rows_by_chunk(rows) for text in chunk.read_prompts(chunk_rows)
        ]

    def _group_rows_by_chunk(self, rows: np.ndarray) -> Iterator[tuple[CleanChunk, np.ndarray]]:
        for chunk in self.chunks:
            low, high = np.searchsorted(rows, (chunk.first, chunk.first + chunk.rows))
            if high > low:
                yield chunk, rows[low:high] - chunk.first


def mark_unique_rows(corpus: CleanCorpus, threshold: float, stats_by_source: dict[str, CleaningStats]) -> np.ndarray:
    """Return bool [N], true where a row is kept; duplicates are counted in their source's statistics."""
    exact = find_exact_duplicates(corpus.read_column("key"))
    near = np.zeros_like(exact)
    if threshold:
        near = find_near_duplicates(
            lambda number: corpus.read_column(BAND_COLUMNS[number]),
            lambda rows: [normalise_text(text) for text in corpus.read_prompts(rows)],
            corpus.rows,
            threshold,
            exact,
        )
    for reason, removed in (("exact duplicate", exact), ("near duplicate", near)):
        for chunk in corpus.chunks:
            rows = np.flatnonzero(chunk.slice(removed))
            if len(rows):
                stats_by_source[chunk.source].count_removed(reason, chunk.read_prompts(rows))
    kept: np.ndarray = ~(exact | near)
    return kept


def set_distributions(corpus: CleanCorpus, kept: np.ndarray, stats_by_source: dict[str, CleaningStats]) -> None:
    """Set the distributions of each source from the rows that are kept."""
    for source, stats in stats_by_source.items():
        chunks = [chunk for chunk in corpus.chunks if chunk.source == source]
        tables = [chunk.read_kept(["tokens", "aesthetic"], kept) for chunk in chunks]
        if tables:
            stats.set_distributions(pa.concat_tables(tables))


def write_shards(corpus: CleanCorpus, kept: np.ndarray, source: str, rows_per_shard: int, write: WriteTable) -> None:
    """Write a source's prompts in shards; the hash of a prompt selects its shard."""
    chunks = [chunk for chunk in corpus.chunks if chunk.source == source]
    index, rows = 0, sum(int(chunk.slice(kept).sum()) for chunk in chunks)
    shards = max(1, round(rows / rows_per_shard))
    shards_at_once = max(1, MAX_HELD_BYTES // (rows_per_shard * BYTES_PER_PROMPT))
    for first in range(0, shards, shards_at_once):
        for number, table in _iter_shards(chunks, kept, shards, range(first, min(first + shards_at_once, shards))):
            columns = [pa.array(np.arange(index, index + table.num_rows)), table["prompt"]]
            write(f"shard-{source}-{number:05d}.parquet", pa.table(columns, schema=SCHEMA), source=source)
            index += table.num_rows


def _iter_shards(
    chunks: Sequence[CleanChunk], kept: np.ndarray, count: int, numbers: range
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the non-empty ones of the shards `numbers`, with their number; the source has `count` shards."""
    tables_by_shard: dict[int, list[pa.Table]] = {number: [] for number in numbers}
    for chunk in chunks:
        table = chunk.read_kept(["prompt", "key"], kept)
        shard_N = (table["key"].to_numpy() % np.uint64(count)).astype(np.int64)
        order = np.argsort(shard_N, kind="stable")
        by_shard = table.select(["prompt"]).take(pa.array(order))
        edges = np.searchsorted(shard_N[order], np.arange(numbers.start, numbers.stop + 1))
        for number, (first, last) in zip(numbers, pairwise(edges.tolist()), strict=True):
            tables_by_shard[number].append(by_shard.slice(first, last - first))
    for number, tables in tables_by_shard.items():
        shard = pa.concat_tables(tables)
        if shard.num_rows:
            yield number, shard.combine_chunks()
