"""Cleaning of source files; a file that was cleaned with the same settings before is not cleaned again.

One task reads a file as a stream of chunks of bounded size, and as many tasks as there are cores clean them, on Ray
Data. A cleaned file is complete when its statistics are written.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from datasets_prep.chunk_cleaning import BAND_COLUMNS as BANDS
from datasets_prep.chunk_cleaning import CleaningStats, clean_table
from datasets_prep.filters import CountTokens, Filters
from datasets_prep.sources import SCHEMA, read_tables
from pipeline.errors import UserError, get_first_line
from pipeline.prompts.source_files import SourceFile
from pipeline.remote_errors import iter_rows
from pipeline.resource_requests import TIMEOUT_MINUTES, ResourceRequest, build_ray_resources, wait_for_resources
from pipeline.storage import Folder

ROWS_PER_CHUNK = 10_000
MAX_IN_PROCESS_BYTES = 16 * 2**20  # largest input that is cleaned without starting Ray
READER_CPUS = 0.1  # the rest of the core cleans
CORES_PER_READER = 8  # cleaning tasks that one reader keeps busy
STATISTICS = "statistics.json"
VERSION = 3  # raise it when a change of the code changes the cleaned prompts


@dataclass(frozen=True)
class CleaningConfig:
    """The settings of cleaning: filters, the content of a tokenizer.json, and the rows per chunk."""

    filters: Filters
    tokenizer: str
    rows_per_chunk: int = ROWS_PER_CHUNK

    @property
    def text(self) -> str:
        """The settings as text, for the cache key."""
        return json.dumps([VERSION, asdict(self)])


@dataclass(frozen=True)
class RawChunk:
    """A chunk of a file on its way to a cleaning task: Arrow IPC bytes, and the number of its first row.

    `key` is the file's cache key, `last` marks the file's last chunk.
    """

    key: str
    number: int
    row: int
    table: bytes
    last: bool


@dataclass(frozen=True)
class ChunkReport:
    """The report of a cleaned chunk; `statistics` is JSON."""

    key: str
    number: int
    last: bool
    statistics: str


@dataclass(frozen=True)
class CleanedFile:
    """A file's clean chunks and statistics."""

    source_file: SourceFile
    folder: Folder
    stats: CleaningStats
    chunks: tuple[str, ...]


def clean_files(
    files: Sequence[SourceFile], config: CleaningConfig, folder: Folder, address: str | None = None
) -> list[CleanedFile]:
    """Clean the files that are not cleaned yet; `folder` has a folder for each file."""
    missing = [file for file in files if not (folder / file.compute_cache_key(config.text)).exists(STATISTICS)]
    try:
        if missing:
            run = (
                _in_process
                if sum(file.size for file in missing) < MAX_IN_PROCESS_BYTES and not address
                else _clean_on_ray
            )
            _collect(missing, run(missing, config, folder, address), config, folder)
    except OSError as error:
        raise UserError(
            f"prompts.sources: cannot be read: {get_first_line(error)}. Run the same command again to continue."
        ) from error
    return [_load_cleaned_file(file, folder / file.compute_cache_key(config.text)) for file in files]


def _collect(
    missing: Sequence[SourceFile], done: Iterator[ChunkReport], config: CleaningConfig, folder: Folder
) -> None:
    """Add up the chunks' statistics; a file's are written when its last chunk and all before it are reported."""
    reports: dict[str, dict[int, str]] = {file.compute_cache_key(config.text): {} for file in missing}
    lengths: dict[str, int] = {}
    for report in done:
        by_number = reports[report.key]
        by_number[report.number] = report.statistics
        if report.last:
            lengths[report.key] = report.number + 1
        if len(by_number) == lengths.get(report.key):
            total = CleaningStats()
            for number in sorted(by_number):
                total.merge(CleaningStats.from_dict(json.loads(by_number[number])))
            (folder / report.key).write_json(STATISTICS, {**total.to_dict(), "parts": len(by_number)})
            reports[report.key] = {}


def _load_cleaned_file(file: SourceFile, folder: Folder) -> CleanedFile:
    statistics = folder.read_json(STATISTICS)
    return CleanedFile(
        file, folder, CleaningStats.from_dict(statistics), tuple(map(_format_chunk_name, range(statistics["parts"])))
    )


def _format_chunk_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def iter_raw_chunks(file: SourceFile, key: str, batch_size: int) -> Iterator[RawChunk]:
    """Yield the file's raw chunks; an empty file has one."""
    row, number, previous = 0, 0, None
    for table in read_tables(file.to_prompt_file(), batch_size):
        if previous is not None:
            yield previous
        previous = RawChunk(key, number, row, _to_ipc(table), last=False)
        row, number = row + table.num_rows, number + 1
    yield replace(previous or RawChunk(key, 0, 0, _to_ipc(SCHEMA.empty_table()), last=True), last=True)


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def clean_chunk(chunk: RawChunk, config: CleaningConfig, folder: Folder) -> ChunkReport:
    """Write the clean part of one chunk and return its report."""
    raw = pa.ipc.open_stream(chunk.table).read_all()
    table, stats = clean_table(raw, chunk.row, config.filters, build_token_counter(config.tokenizer))
    compression = {"prompt": "zstd"} | dict.fromkeys(BANDS, "none")
    (folder / chunk.key).write_table(
        _format_chunk_name(chunk.number), table, use_dictionary=False, compression=compression
    )
    return ChunkReport(chunk.key, chunk.number, chunk.last, json.dumps(stats.to_dict()))


@lru_cache(maxsize=1)
def build_token_counter(tokenizer: str) -> CountTokens:
    """Return a function that counts tokens with start and end, without truncating."""
    from tokenizers import Tokenizer

    counter = Tokenizer.from_str(tokenizer)
    counter.no_truncation()
    counter.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in counter.encode_batch_fast(list(texts))]

    return count


def _in_process(
    missing: Sequence[SourceFile], config: CleaningConfig, folder: Folder, _: str | None
) -> Iterator[ChunkReport]:
    for file in missing:
        for chunk in iter_raw_chunks(file, file.compute_cache_key(config.text), config.rows_per_chunk):
            yield clean_chunk(chunk, config, folder)


def _clean_on_ray(
    missing: Sequence[SourceFile], config: CleaningConfig, folder: Folder, address: str | None
) -> Iterator[ChunkReport]:
    """Clean on Ray; reading is a separate task with a small share of a core, so that one large file uses all cores.

    Few files are read at a time, as many as keep the cores busy, because each holds a chunk in memory.
    """
    import ray.data

    from pipeline.ray_session import start_ray_session

    def read_chunks(batch: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        file = missing[int(batch["item"][0])]
        for chunk in iter_raw_chunks(file, file.compute_cache_key(config.text), config.rows_per_chunk):
            yield {name: [value] for name, value in vars(chunk).items()}

    def clean_batch(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        chunk = RawChunk(**{name: values[0] for name, values in batch.items()})
        return {name: [value] for name, value in vars(clean_chunk(chunk, config, folder)).items()}

    with start_ray_session(address, least_cpus=1):
        wait_for_resources(ResourceRequest("", "task", 1, build_ray_resources(1, 0)), TIMEOUT_MINUTES, address)
        readers = max(1, int(ray.cluster_resources().get("CPU", 1) / CORES_PER_READER))
        numbers = ray.data.from_items(list(range(len(missing))), override_num_blocks=len(missing))
        raw = numbers.map_batches(read_chunks, batch_size=1, num_cpus=READER_CPUS, concurrency=readers)
        for row in iter_rows(raw.map_batches(clean_batch, batch_size=1, num_cpus=1 - READER_CPUS)):
            yield ChunkReport(**row)
