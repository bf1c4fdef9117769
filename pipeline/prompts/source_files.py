"""The files of a recipe's sources."""

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import PurePosixPath

from pyarrow import fs

from datasets_prep.sources import PICKLE_ENDINGS, READABLE_ENDINGS, PromptFile, require_format
from pipeline.errors import UserError, get_first_line, invalid
from pipeline.hashing import hash_bytes
from pipeline.recipe import Source
from pipeline.storage import Folder
from pipeline.strict_model import StrictModel

_SIDE_FILES = ("dataset_info.json", "state.json", "dataset_dict.json", "manifest.json")


class SourceFile(StrictModel):
    """A file of a source, with its size and modification time."""

    source: str
    uri: str
    column: str
    size: int
    changed: str

    @property
    def path(self) -> str:
        """The path within the file system."""
        return self.uri.removeprefix("s3://")

    def to_prompt_file(self) -> PromptFile:
        """Return the file as `datasets_prep.sources` reads it."""
        location = Folder.from_uri(self.uri)
        return PromptFile(location.filesystem, location.path, self.column)

    def compute_cache_key(self, settings: str) -> str:
        """Return the key of the cleaned file; it changes with the file and the settings of cleaning."""
        content = json.dumps([self.uri, self.column, self.size, self.changed, settings])
        return hash_bytes(content.encode())[:16]


def find_source_files(sources: Sequence[Source], field: str = "prompts.sources") -> list[tuple[str, list[SourceFile]]]:
    """Return each source's name and its files, sorted by path.

    Raises:
        UserError: if two sources have one name, or a source has no files or an unreadable one.
    """
    names = [source.name or _derive_name(source.path) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise invalid(
                f"{field}: name", name, "another name for each source", "Set `name` in each [[prompts.sources]]."
            )
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise invalid(f"{field}: name", name, "letters, digits, ., - and _, and no . at the start")
    return [(name, _list_source_files(name, source, field)) for name, source in zip(names, sources, strict=True)]


def _derive_name(path: str) -> str:
    """Return the last part of a path without asterisk and ending."""
    parts = [part for part in PurePosixPath(path.removeprefix("s3://")).parts if "*" not in part]
    return re.sub(r"[^\w-]+", "-", parts[-1].split(".")[0]).strip("-") or "prompts" if parts else "prompts"


def _list_source_files(name: str, source: Source, field: str) -> list[SourceFile]:
    entries = sorted(_list_matching_entries(source.path, field), key=lambda entry: entry.path)
    if not entries:
        formats = f"an existing file, folder or pattern with *, of the formats {', '.join(READABLE_ENDINGS)}"
        raise invalid(field, source.path, f'{formats}; or "shapes"')
    for entry in entries:
        try:
            require_format(entry.path)
        except ValueError as error:
            raise UserError(f"{field}: {error}") from None
    root = "" if Folder.from_uri(source.path).is_local else "s3://"
    return [
        SourceFile(
            source=name,
            uri=root + entry.path,
            column=source.column,
            size=int(entry.size or 0),
            changed=str(entry.mtime_ns),
        )
        for entry in entries
    ]


def _list_matching_entries(path: str, field: str) -> list[fs.FileInfo]:
    """Return the files that a path names: itself, those of a folder, or those that match a pattern."""
    location = Folder.from_uri(path)
    is_pattern = "*" in location.path
    root = location.path.split("*")[0].rpartition("/")[0] if is_pattern else location.path
    try:
        info = location.filesystem.get_file_info(root)
        entries = [info]
        if info.type == fs.FileType.Directory:
            entries = location.filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise UserError(f"{field}: {path!r} cannot be listed: {get_first_line(error)}.") from None
    if is_pattern:
        regex = _compile_pattern(location.path)
        entries = [entry for entry in entries if regex.fullmatch(entry.path) and not _is_cache(entry)]
    elif info.type == fs.FileType.Directory:
        entries = _select_readable_entries(entries, location.filesystem)
    return [entry for entry in entries if entry.is_file]


def _compile_pattern(path: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern, in which only `*` is special; it also matches `/`."""
    return re.compile(".*".join(map(re.escape, path.split("*"))), re.DOTALL)


def _is_cache(entry: fs.FileInfo) -> bool:
    """Tell whether a file is a cache of Hugging Face `datasets`, not a shard."""
    return bool(re.fullmatch(r"cache-\w+\.arrow", entry.base_name))


def _select_readable_entries(entries: list[fs.FileInfo], filesystem: fs.FileSystem) -> list[fs.FileInfo]:
    """Return the files of a folder that are readable, or rejected by their name."""
    files = [entry for entry in entries if entry.is_file and not entry.base_name.startswith((".", "_"))]
    files.sort(key=_get_parent_folder)
    return [
        entry
        for _, group in groupby(files, _get_parent_folder)
        for entry in _select_dataset_entries(list(group), filesystem)
    ]


def _get_parent_folder(entry: fs.FileInfo) -> str:
    return str(entry.path).rpartition("/")[0]


def _select_dataset_entries(files: list[fs.FileInfo], filesystem: fs.FileSystem) -> list[fs.FileInfo]:
    """Return the shards of a Hugging Face dataset, the archives of img2dataset, or all readable files."""
    state = next((entry for entry in files if entry.base_name == "state.json"), None)
    if state and (shards := _read_shard_names(state, filesystem)):
        return [entry for entry in files if entry.base_name in shards]
    readable = [
        entry
        for entry in files
        if entry.base_name.lower().endswith((*READABLE_ENDINGS, *PICKLE_ENDINGS))
        and entry.base_name not in _SIDE_FILES
        and not _is_cache(entry)
    ]
    if arrow := [entry for entry in readable if entry.base_name.endswith(".arrow")]:
        return arrow
    stems = {entry.base_name.removesuffix(".tar") for entry in files if entry.base_name.endswith(".tar")}
    copies = {f"{stem}{ending}" for stem in stems for ending in (".parquet", "_stats.json")}
    return [entry for entry in readable if entry.base_name not in copies]


def _read_shard_names(state: fs.FileInfo, filesystem: fs.FileSystem) -> set[str]:
    """Return the names of the shards in a dataset's `state.json`, or an empty set."""
    try:
        with filesystem.open_input_stream(state.path) as stream:
            return {file["filename"] for file in json.loads(stream.read())["_data_files"]}
    except (ValueError, KeyError, TypeError):
        return set()
