"""What every reader gives: the schema of raw prompts, and rows that stand for what could not be read."""

import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

SCORES = ("aesthetic", "punsafe", "pwatermark")
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("negative", pa.string()),
        *((score, pa.float32()) for score in SCORES),
        ("problem", pa.dictionary(pa.int32(), pa.string())),
    ]
)
COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("prompt", "text", "caption", "top_caption"),
        "negative": ("negative_prompt",),
        "aesthetic": ("aesthetic_score", "aesthetic", "prediction", "aesthetic_score_laion_v2", "aesthetics_score"),
        "punsafe": ("punsafe",),
        "pwatermark": ("pwatermark",),
    }
)
"""Names in the wild, in lower case, by what they hold."""

MOST_BYTES = 100_000  # of one prompt: twenty times the longest that anyone typed
_STORE_FAILED = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error, tarfile.TarError, pa.ArrowException)


@dataclass(frozen=True)
class File:
    """One file of a source. `column` holds the prompts, with dots into nested objects; empty is found by name."""

    filesystem: fs.FileSystem
    path: str
    column: str = ""

    def stream(self) -> BinaryIO:
        opened: BinaryIO = io.BufferedReader(self.filesystem.open_input_stream(self.path, compression=None))
        return opened


def table_of(columns: dict[str, Any], count: int) -> pa.Table:
    """Of `SCHEMA`; what is not given is null."""
    arrays = [columns[field.name] if field.name in columns else pa.nulls(count) for field in SCHEMA]
    return pa.table(arrays, names=SCHEMA.names).cast(SCHEMA)


def refused(count: int, problem: str, rows: int) -> Iterator[pa.Table]:
    """So many rows with a problem, in tables of at most `rows`."""
    for first in range(0, count, rows):
        size = min(rows, count - first)
        yield table_of({"problem": pa.array([problem] * size)}, size)


def problem_of(error: BaseException) -> str:
    """One line that says what is wrong with the data; where it is the store that failed, the error goes on."""
    if isinstance(error, _STORE_FAILED) or "AWS Error" in str(error):
        raise error
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
