"""Input files of a recipe's sources: discovery by path, folder or pattern, and cache keys."""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import PurePosixPath

from pyarrow import fs

from datasets_prep.sources import PICKLES, READERS, File, reader_of
from pipeline.errors import UserError
from pipeline.prompts.prompt_dataset import SourceFile
from pipeline.recipe import Source
from pipeline.storage import Folder

_SIDE_FILES = ("dataset_info.json", "state.json", "dataset_dict.json", "manifest.json")


class InputFile(SourceFile):
    """One file of a source, as it was found."""

    @property
    def path(self) -> str:
        """The path within the file system."""
        return self.uri.removeprefix("s3://")

    def file(self) -> File:
        """Return the file as `datasets_prep.sources` reads it."""
        folder = Folder.from_uri(self.uri)
        return File(folder.filesystem, folder.path, self.column)

    def key(self, settings: str) -> str:
        """Return the cache key of this content under these settings."""
        fingerprint = json.dumps([self.uri, self.column, self.size, self.changed, settings])
        return hashlib.sha256(fingerprint.encode()).hexdigest()[:16]


def find_inputs(sources: Sequence[Source], field: str = "prompts.sources") -> list[tuple[str, list[InputFile]]]:
    """Return each source's name and files, sorted; all are of readable formats."""
    names = [source.name or _source_name(source.path) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{field}: the name {name!r} twice is not allowed; allowed: a `name` for each")
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise UserError(f"{field}: the name {name!r} is not allowed; allowed: letters, digits, - and _")
    return [(name, _source_files(name, source, field)) for name, source in zip(names, sources, strict=True)]


def _source_name(path: str) -> str:
    """Return the last part of a path without its ending."""
    plain = [part for part in PurePosixPath(path.removeprefix("s3://")).parts if "*" not in part]
    return re.sub(r"[^\w-]+", "-", plain[-1].split(".")[0]).strip("-") or "prompts" if plain else "prompts"


def _source_files(name: str, source: Source, field: str) -> list[InputFile]:
    folder = Folder.from_uri(source.path)
    prefix = folder.path.split("*")[0].rpartition("/")[0] if "*" in folder.path else folder.path
    try:
        info = folder.filesystem.get_file_info(prefix)
        entries = [info]
        if info.type == fs.FileType.Directory:
            entries = folder.filesystem.get_file_info(fs.FileSelector(prefix, recursive=True))
    except OSError as error:
        raise UserError(f"{field}: {source.path!r} cannot be listed: {str(error).splitlines()[0]}") from None
    if "*" in folder.path:
        entries = [entry for entry in entries if _pattern(folder.path).fullmatch(entry.path) and not _is_cache(entry)]
    elif info.type == fs.FileType.Directory:
        entries = _files_of_folders(entries, folder.filesystem)
    found = [entry for entry in entries if entry.is_file]
    if not found:
        raise UserError(
            f"{field}: {source.path!r}: no such file; allowed: a file, a folder or a pattern with *, of "
            f'{", ".join(READERS)}; or "shapes"'
        )
    for entry in found:
        try:
            reader_of(entry.path)
        except ValueError as error:
            raise UserError(f"{field}: {error}") from None
    root = "" if folder.is_local else "s3://"
    return [
        InputFile(
            source=name,
            uri=root + entry.path,
            column=source.column,
            size=int(entry.size or 0),
            changed=str(entry.mtime_ns),
        )
        for entry in sorted(found, key=lambda entry: entry.path)
    ]


def _pattern(path: str) -> re.Pattern[str]:
    """Only `*` stands for others than itself: any characters, a / too."""
    return re.compile(".*".join(map(re.escape, path.split("*"))), re.DOTALL)


def _is_cache(entry: fs.FileInfo) -> bool:
    """Whether it is what `datasets` keeps of a computation beside a dataset's own shards."""
    return bool(re.fullmatch(r"cache-\w+\.arrow", entry.base_name))


def _files_of_folders(entries: list[fs.FileInfo], filesystem: fs.FileSystem) -> list[fs.FileInfo]:
    """Return the files of a folder that can be read, or are refused by name."""
    files = [entry for entry in entries if entry.is_file and not entry.base_name.startswith((".", "_"))]
    files.sort(key=_folder)
    return [entry for _, own in groupby(files, _folder) for entry in _readable_files(list(own), filesystem)]


def _folder(entry: fs.FileInfo) -> str:
    return str(entry.path).rpartition("/")[0]


def _readable_files(files: list[fs.FileInfo], filesystem: fs.FileSystem) -> list[fs.FileInfo]:
    """Return the shards of a Hugging Face dataset, the archives of img2dataset, or all files."""
    state = next((entry for entry in files if entry.base_name == "state.json"), None)
    if state and (shards := _dataset_shards(state, filesystem)):
        return [entry for entry in files if entry.base_name in shards]
    readable = [
        entry
        for entry in files
        if entry.base_name.lower().endswith((*READERS, *PICKLES))
        and entry.base_name not in _SIDE_FILES
        and not _is_cache(entry)
    ]
    if arrow := [entry for entry in readable if entry.base_name.endswith(".arrow")]:
        return arrow
    stems = {entry.base_name.removesuffix(".tar") for entry in files if entry.base_name.endswith(".tar")}
    copies = {f"{stem}{ending}" for stem in stems for ending in (".parquet", "_stats.json")}
    return [entry for entry in readable if entry.base_name not in copies]


def _dataset_shards(state: fs.FileInfo, filesystem: fs.FileSystem) -> set[str]:
    """Return the files in a dataset's `state.json`, or none."""
    try:
        with filesystem.open_input_stream(state.path) as stream:
            return {file["filename"] for file in json.loads(stream.read())["_data_files"]}
    except (ValueError, KeyError, TypeError):
        return set()
