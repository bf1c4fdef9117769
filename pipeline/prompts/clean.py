"""Cleaning a corpus, file by file: what was cleaned in the same way before is not touched again.

A file is read as a stream of chunks of a bounded size by one task, and its chunks are cleaned by as many tasks as there
are cores, on Ray Data. What one file leaves is complete when its account lies beside it.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep.chunk import BAND_COLUMNS as BANDS
from datasets_prep.chunk import CleaningStats, process
from datasets_prep.filters import CountTokens, Filters
from datasets_prep.sources import SCHEMA, read
from pipeline.errors import UserError, first_line
from pipeline.prompts.inputs import Input
from pipeline.remote_errors import iter_rows
from pipeline.resources import TIMEOUT_MINUTES, ResourceRequest, ray_resources, wait_for_resources
from pipeline.storage import Folder

ROWS_PER_CHUNK = 10_000
IN_PROCESS = 16 * 2**20  # bytes of input that are not worth a cluster's start
READING = 0.1  # of a core, the other part of which cleans
CORES_A_READER = 8  # whom it keeps busy
ACCOUNT = "account.json"
VERSION = 3  # raised when cleaning gives other prompts


@dataclass(frozen=True)
class CleaningConfig:
    """The settings that a cleaned file depends on. `tokenizer` is a tokenizer.json's text, `rows` a chunk's size."""

    filters: Filters
    tokenizer: str
    rows: int = ROWS_PER_CHUNK

    @property
    def text(self) -> str:
        """Return the settings as text, for the cache key."""
        return json.dumps([VERSION, asdict(self)])


@dataclass(frozen=True)
class Cleaned:
    """A file's clean chunks, and what became of its rows."""

    input: Input
    folder: Folder
    account: CleaningStats
    parts: tuple[str, ...]


def clean(inputs: Sequence[Input], how: CleaningConfig, folder: Folder, address: str | None = None) -> list[Cleaned]:
    """Clean what is not cleaned yet; `folder` keeps a folder for each file."""
    missing = [each for each in inputs if not (folder / each.key(how.text)).exists(ACCOUNT)]
    try:
        if missing:
            run = _in_process if sum(each.size for each in missing) < IN_PROCESS and not address else _on_ray
            _collect(missing, run(missing, how, folder, address), how, folder)
    except OSError as error:
        raise UserError(
            f"prompts.sources: cannot be read: {first_line(error)}; run the same command again to go on"
        ) from error
    return [_cleaned(each, folder / each.key(how.text)) for each in inputs]


def _collect(missing: Sequence[Input], done: Iterator[dict[str, Any]], how: CleaningConfig, folder: Folder) -> None:
    """Add up what the chunks report; a file's account is written when its last chunk and all before it are there."""
    reports: dict[str, dict[int, dict[str, Any]]] = {each.key(how.text): {} for each in missing}
    lengths: dict[str, int] = {}
    for report in done:
        own = reports[report["key"]]
        own[report["number"]] = json.loads(report["account"])
        if report["last"]:
            lengths[report["key"]] = report["number"] + 1
        if len(own) == lengths.get(report["key"]):
            account = CleaningStats()
            for number in sorted(own):
                account.add(CleaningStats.of(own[number]))
            record = {**account.to_dict(), "parts": len(own)}
            (folder / report["key"]).write(ACCOUNT, json.dumps(record).encode())
            reports[report["key"]] = {}


def _cleaned(each: Input, folder: Folder) -> Cleaned:
    record = json.loads(folder.read(ACCOUNT))
    return Cleaned(each, folder, CleaningStats.of(record), tuple(map(_part, range(record["parts"]))))


def _part(number: int) -> str:
    return f"part-{number:05d}.parquet"


def chunks(each: Input, key: str, rows: int) -> Iterator[dict[str, Any]]:
    """Yield the file's raw chunks as messages, of which the last says so."""
    row, number, held = 0, 0, None
    for table in read(each.file(), rows):
        if held is not None:
            yield {**held, "last": False}
        held = {"key": key, "number": number, "row": row, "chunk": _packed(table)}
        row, number = row + table.num_rows, number + 1
    yield {**(held or {"key": key, "number": 0, "row": 0, "chunk": _packed(SCHEMA.empty_table())}), "last": True}


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def clean_chunk(message: dict[str, Any], how: CleaningConfig, folder: Folder) -> dict[str, Any]:
    """Write the clean part of one chunk, and report what became of its rows."""
    raw = pa.ipc.open_stream(message["chunk"]).read_all()
    table, account = process(raw, message["row"], how.filters, token_counter(how.tokenizer))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, use_dictionary=False, compression={"prompt": "zstd"} | dict.fromkeys(BANDS, "none"))
    (folder / message["key"]).write(_part(message["number"]), buffer.getvalue())
    return {
        "key": message["key"],
        "number": message["number"],
        "last": message["last"],
        "account": json.dumps(account.to_dict()),
    }


@lru_cache(maxsize=1)
def token_counter(tokenizer: str) -> CountTokens:
    """Return a function that counts tokens with start and end, without truncating."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(tokenizer)
    made.no_truncation()
    made.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in made.encode_batch_fast(list(texts))]

    return count


def _in_process(
    missing: Sequence[Input], how: CleaningConfig, folder: Folder, _: str | None
) -> Iterator[dict[str, Any]]:
    for each in missing:
        for message in chunks(each, each.key(how.text), how.rows):
            yield clean_chunk(message, how, folder)


def _on_ray(
    missing: Sequence[Input], how: CleaningConfig, folder: Folder, address: str | None
) -> Iterator[dict[str, Any]]:
    """Clean on Ray; reading is a task apart with a small share of a core, so that one large file uses all cores.

    Few files are read at a time, as many as keep the cores busy: each holds a chunk.
    """
    import ray.data

    from pipeline.session import ray_session

    def read_chunks(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        each = missing[int(batch["item"][0])]
        for message in chunks(each, each.key(how.text), how.rows):
            yield {name: [value] for name, value in message.items()}

    def clean_one(batch: dict[str, Any]) -> dict[str, Any]:
        message = {name: values[0] for name, values in batch.items()}
        return {name: [value] for name, value in clean_chunk(message, how, folder).items()}

    with ray_session(address, least_cpus=1):
        wait_for_resources(ResourceRequest("", "task", 1, ray_resources(1, 0)), TIMEOUT_MINUTES, address)
        readers = max(1, int(ray.cluster_resources().get("CPU", 1) / CORES_A_READER))
        files = ray.data.from_items(list(range(len(missing))), override_num_blocks=len(missing))
        read_ = files.map_batches(read_chunks, batch_size=1, num_cpus=READING, concurrency=readers)
        yield from iter_rows(read_.map_batches(clean_one, batch_size=1, num_cpus=1 - READING))
