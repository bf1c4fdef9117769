"""Tar archives as streams: files of prompts, and samples of WebDataset, such as img2dataset's.

A sample is consecutive files whose names differ only in the ending: an image or another medium, and its caption as
text, its metadata as JSON, or both. WebDataset ends a sample's name at its first dot, so that `1.seg.png` belongs to
`1.jpg`, but many names contain dots (`sdxl1.0_0001.png`). Both are read: a longer name is a sample of its own if it has
a caption, and otherwise belongs to the shorter one.
"""

import io
import json
import tarfile
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from datasets_prep.sources.format_detection import infer_format
from datasets_prep.sources.raw_prompt_schema import UNREADABLE, row_from_object, rows_to_tables
from datasets_prep.sources.stream_decoding import peek

SMALL = 2**20  # bytes of a file that may belong to a sample; a larger one is a file of prompts
MAX_MEMBERS, MAX_HELD_BYTES = 2**12, 2**24  # limits of a family: members, and bytes of their content
CAPTIONS = ("txt", "text", "caption", "cap")
MEDIA = """
jpg jpeg png webp gif bmp tif tiff avif heic jxl mp4 webm mov avi mkv mp3 wav flac npy npz pt pth safetensors
"""
_MEDIA = tuple(MEDIA.split())
Reader = Callable[[str, BinaryIO, int], Iterator[pa.Table]]


class Member(NamedTuple):
    """A file of an archive. `stem` is its name without the ending, `family` its name up to the first dot."""

    name: str
    stem: str
    family: str
    content: bytes
    stream: BinaryIO | None


def read_tar(stream: BinaryIO, batch_size: int, column: str, read: Reader) -> Iterator[pa.Table]:
    """Read an archive; `read` reads its files of prompts. Other files are skipped, unless they belong to a sample."""
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        yield from rows_to_tables(_iter_items(archive, batch_size, column, read), batch_size)


def _iter_items(
    archive: tarfile.TarFile, batch_size: int, column: str, read: Reader
) -> Iterator[dict[str, Any] | pa.Table]:
    for family in _group_families(archive, batch_size, read):
        if isinstance(family, pa.Table):
            yield family
            continue
        for sample in _group_samples(family):
            if _is_sample(sample):
                yield from _parse_captions(sample, column)
            else:
                for member in sample:
                    if infer_format(member.name) is not None:
                        for table in read(member.name, io.BytesIO(member.content), batch_size):
                            yield from table.to_pylist()


def _group_families(archive: tarfile.TarFile, batch_size: int, read: Reader) -> Iterator[list[Member] | pa.Table]:
    """Yield consecutive members of one family, as many as fit in memory, and tables of large files.

    An error is raised after the members before it are yielded.
    """
    pending: dict[str, Member] = {}
    size, last = 0, None
    try:
        for member in _iter_members(archive):
            if member.stream is not None:
                yield from read(member.name, member.stream, batch_size)
                continue
            is_full = (len(pending) >= MAX_MEMBERS or size >= MAX_HELD_BYTES) and last and member.stem != last.stem
            if last and (is_full or member.family != last.family or member.name in pending):
                yield list(pending.values())
                pending, size = {}, 0
            pending[member.name] = last = member
            size += len(member.content)
    except UNREADABLE:
        if pending:
            yield list(pending.values())
        raise
    if pending:
        yield list(pending.values())


def _group_samples(family: Sequence[Member]) -> Iterator[list[Member]]:
    """Group members by stem; one without a caption joins the shortest stem that it extends, if that has an image."""
    by_stem: dict[str, list[Member]] = {}
    for member in family:
        by_stem.setdefault(member.stem, []).append(member)
    joined: dict[str, list[str]] = {}
    for stem, members in by_stem.items():
        joined.setdefault(stem if _is_captioned(members) else _find_shortest_stem(stem, by_stem), []).append(stem)
    for stems in joined.values():
        parts = [by_stem[stem] for stem in stems]
        together = [member for part in parts for member in part]
        yield from [together] if _has_medium(together) else parts


def _find_shortest_stem(stem: str, stems: Container[str]) -> str:
    folder, slash, base = stem.rpartition("/")
    parts = base.split(".")
    shorter = (f"{folder}{slash}{'.'.join(parts[:count])}" for count in range(1, len(parts)))
    return next((name for name in shorter if name in stems), stem)


def _iter_members(archive: tarfile.TarFile) -> Iterator[Member]:
    """Yield an archive's members; large or truncated ones are streams, to be read before the next member."""
    for member in archive:
        folder, _, base = member.name.rpartition("/")
        if not member.isfile() or base.startswith("."):
            continue
        stem, family = f"{folder}/{base.rpartition('.')[0]}", f"{folder}/{base.partition('.')[0]}"
        if _get_extension(base) in _MEDIA:
            yield Member(member.name, stem, family, b"", None)
        elif infer_format(base) is not None or _get_extension(base) in CAPTIONS:
            opened: Any = archive.extractfile(member)
            content, stream = peek(opened, SMALL)
            is_whole = len(content) == member.size
            yield Member(member.name, stem, family, content if is_whole else b"", None if is_whole else stream)


def _get_extension(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _has_medium(group: Sequence[Member]) -> bool:
    return any(_get_extension(member.name) in _MEDIA for member in group)


def _is_sample(group: Sequence[Member]) -> bool:
    endings = {_get_extension(member.name) for member in group}
    return _has_medium(group) or ("json" in endings and not endings.isdisjoint(CAPTIONS))


def _is_captioned(group: Sequence[Member]) -> bool:
    return _is_sample(group) and any(_get_extension(member.name) in (*CAPTIONS, "json") for member in group)


def _parse_captions(sample: Sequence[Member], column: str) -> Iterator[dict[str, Any]]:
    """Yield one row, or one per caption (`1.en.txt`, `1.de.txt`) if no column is chosen."""
    captions = [member for member in sample if _get_extension(member.name) in CAPTIONS]
    by_stem: dict[str, list[Member]] = {}
    for caption in captions:
        by_stem.setdefault(caption.stem, []).append(caption)
    if column or len(by_stem) < 2:
        yield _parse_sample(sample, column)
        return
    non_captions = [member for member in sample if _get_extension(member.name) not in CAPTIONS]
    for captions_of_stem in by_stem.values():
        yield _parse_sample([*non_captions, *captions_of_stem], column)


def _parse_sample(group: Sequence[Member], column: str) -> dict[str, Any]:
    """Return a sample's row; a caption file takes precedence over the metadata, unless a column is chosen."""
    content = {
        _get_extension(member.name): member.content for member in sorted(group, key=lambda member: -len(member.stem))
    }
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
    row = row_from_object(value, column)
    if row.get("problem") == "no prompt":
        return {"problem": f"the sample has no caption; it has {', '.join(content)}"}
    return row
