"""Tar archives, read as they stream: files of prompts, and WebDataset's samples, such as img2dataset writes them.

A sample is files that follow one another and whose names differ in the ending alone: an image or another medium, and
its caption as text, its metadata as JSON, or both.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, BinaryIO

import pyarrow as pa

from datasets_prep.sources.rows import UNREADABLE, of_rows, row_of
from datasets_prep.sources.sniff import named_kind
from datasets_prep.sources.unpack import with_head

SMALL = 2**20  # bytes of what may belong to a sample; a larger file is one of prompts
CAPTIONS = ("txt", "text", "caption", "cap")
MEDIA = """
jpg jpeg png webp gif bmp tif tiff avif heic jxl mp4 webm mov avi mkv mp3 wav flac npy npz pt pth safetensors
"""
_MEDIA = tuple(MEDIA.split())
Reader = Callable[[str, BinaryIO, int], Iterator[pa.Table]]
Member = tuple[str, str, bytes, BinaryIO | None]  # name, what stands before its first dot, content, or the stream of it


def read_tar(stream: BinaryIO, rows: int, column: str, read: Reader) -> Iterator[pa.Table]:
    """`read` reads a file of prompts by its name. Other files are passed over, unless they belong to a sample."""
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        yield from _in_tables(_found(archive, rows, column, read), rows)


def _in_tables(found: Iterable[dict[str, Any] | pa.Table], rows: int) -> Iterator[pa.Table]:
    """Single rows put together, in order. What was found before an error is given before it is raised."""
    held: list[dict[str, Any]] = []
    try:
        for each in found:
            if isinstance(each, dict):
                held.append(each)
            if held and (len(held) == rows or not isinstance(each, dict)):
                yield of_rows(held)
                held = []
            if not isinstance(each, dict):
                yield each
    except UNREADABLE:
        if held:
            yield of_rows(held)
        raise
    if held:
        yield of_rows(held)


def _found(archive: tarfile.TarFile, rows: int, column: str, read: Reader) -> Iterator[dict[str, Any] | pa.Table]:
    for _, group in groupby(_members(archive), key=lambda member: member[1]):
        small: list[Member] = []
        for member in group:
            if member[3] is None:
                small.append(member)
            else:
                yield from read(member[0], member[3], rows)
        if _is_sample(small):
            yield _sample(small, column)
        else:
            for name, _, content, _ in small:
                if named_kind(name) is not None:
                    for table in read(name, io.BytesIO(content), rows):
                        yield from table.to_pylist()


def _members(archive: tarfile.TarFile) -> Iterator[Member]:
    """The content of media is not read. What is large, or cut short, is a stream, to be read before the next member."""
    for member in archive:
        folder, _, base = member.name.rpartition("/")
        if not member.isfile() or base.startswith("."):
            continue
        stem = f"{folder}/{base.partition('.')[0]}"
        if _ending(base) in _MEDIA:
            yield member.name, stem, b"", None
        elif named_kind(base) is not None or _ending(base) in CAPTIONS:
            opened: Any = archive.extractfile(member)
            content, stream = with_head(opened, SMALL)
            whole = len(content) == member.size
            yield member.name, stem, content if whole else b"", None if whole else stream


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _is_sample(group: Sequence[Member]) -> bool:
    endings = {_ending(name) for name, *_ in group}
    return not endings.isdisjoint(_MEDIA) or ("json" in endings and not endings.isdisjoint(CAPTIONS))


def _sample(group: Sequence[Member], column: str) -> dict[str, Any]:
    """The caption's own file comes before the metadata, unless a column is chosen."""
    content = {_ending(name): content for name, _, content, _ in group}
    value: dict[str, Any] = {}
    try:
        if "json" in content:
            loaded = json.loads(content["json"])
            value = loaded if isinstance(loaded, dict) else {}
        caption = next((content[ending] for ending in CAPTIONS if ending in content), None)
        if caption is not None and not column:
            value["prompt"] = caption.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return {"problem": "not UTF-8"}
    except (ValueError, RecursionError):
        return {"problem": "not JSON"}
    row = row_of(value, column)
    if row.get("problem") == "no prompt":
        return {"problem": f"no caption beside {_ending(group[0][0])}; there is {', '.join(content)}"}
    return row
