"""What people have prompts in, read as Arrow tables of a bounded number of rows. One reader a format.

A row that cannot be read is a row all the same, with its `problem` in place of a text: rows in are rows out and rows
refused. A file that cannot be read at all is one such row.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import pyarrow as pa

from datasets_prep.sources import lines, tables
from datasets_prep.sources.rows import SCHEMA, SCORES, UNREADABLE, File, problem_of, refused

__all__ = ["PICKLES", "READERS", "SCHEMA", "SCORES", "File", "read", "reader_of"]

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".npy", ".joblib")


def read(file: File, rows: int) -> Iterator[pa.Table]:
    """Tables of `SCHEMA`, of at most so many rows.

    Raises:
        ValueError: for a format that is not known, and for a pickle.
    """
    reader = reader_of(file.path)
    try:
        yield from reader(file, rows)
    except UNREADABLE as error:
        yield from refused(1, f"file: {problem_of(error)}", rows)


def reader_of(path: str) -> "Callable[[File, int], Iterator[pa.Table]]":
    """By the path's ending.

    Raises:
        ValueError: as `read` does.
    """
    name = path.lower()
    if name.endswith(PICKLES):
        raise ValueError(
            f"{path}: a pickle runs the code that is in it when it is read, and is refused; convert it where you trust "
            "it: `python -c \"import pickle, json; [print(json.dumps({'prompt': p})) for p in "
            f"pickle.load(open('{path.rpartition('/')[2]}', 'rb'))]\" > prompts.jsonl`"
        )
    for ending, reader in READERS.items():
        if name.endswith(ending):
            return reader
    raise ValueError(f"{path}: not of a known format; allowed: {', '.join(READERS)}")


READERS: Mapping[str, Callable[[File, int], Iterator[pa.Table]]] = MappingProxyType(
    {
        ".tar.gz": lines.read_tar,
        ".tgz": lines.read_tar,
        ".tar": lines.read_tar,
        ".gz": lines.read_gzip,
        ".jsonl": lines.read_jsonl,
        ".json": lines.read_jsonl,
        ".parquet": tables.read_parquet,
        ".csv": tables.read_csv,
        ".tsv": tables.read_csv,
        ".arrow": tables.read_arrow,
        ".txt": lines.read_text,
    }
)
