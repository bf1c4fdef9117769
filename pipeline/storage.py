"""Folders that are local or on S3, behind one small interface; every write is atomic."""

import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline import retry
from pipeline.errors import StorageError, UserError, get_first_line, invalid

S3 = re.compile(r"s3://[^/\s]+")


class RetryingS3(fs.S3FileSystem):
    """An S3 file system that keeps its retry policy when it is pickled for Ray Train; pyarrow's own forgets it."""

    def __init__(self, endpoint: str | None) -> None:
        super().__init__(
            endpoint_override=endpoint,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=retry.MAX_ATTEMPTS),
            connect_timeout=10,
            request_timeout=60,
            allow_delayed_open=True,  # a small file is one request, not the three of a multipart upload
        )
        self.endpoint = endpoint

    def __reduce__(self) -> Any:
        """Rebuild the file system from its endpoint."""
        return type(self), (self.endpoint,)


@dataclass(frozen=True)
class Folder:
    """A folder by its URI: an absolute local path, or `s3://bucket/prefix`.

    The environment variable AWS_ENDPOINT_URL names a store other than Amazon's.

    Methods raise a UserError for a missing file, and a StorageError if the store is unavailable.
    """

    uri: str

    @staticmethod
    def from_uri(path_or_uri: str | Path) -> "Folder":
        """Return the folder of a local path or an s3:// URI."""
        text = str(path_or_uri)
        if text.startswith("s3:") and not S3.match(text):
            raise invalid("folder", text, "s3://BUCKET/FOLDER or a local path")
        return Folder(text.rstrip("/") if text.startswith("s3://") else str(Path(text).expanduser().absolute()))

    @property
    def is_local(self) -> bool:
        """Tell whether the folder is on a local or mounted file system."""
        return not self.uri.startswith("s3://")

    @property
    def path(self) -> str:
        """The path within `filesystem`."""
        return self.uri.removeprefix("s3://")

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system of the folder."""
        return fs.LocalFileSystem() if self.is_local else RetryingS3(os.environ.get("AWS_ENDPOINT_URL"))

    def __truediv__(self, name: str) -> "Folder":
        """Return a folder below this one."""
        return Folder(f"{self.uri}/{name}")

    @property
    def parent(self) -> "Folder":
        """The folder that holds this one."""
        return Folder.from_uri(self.uri.rpartition("/")[0] or "/")

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return self.get_size(name) is not None

    def get_size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None if there is no such file."""
        with self._translate_errors("read", name):
            info = self.filesystem.get_file_info(f"{self.path}/{name}")
        return int(info.size) if info.is_file else None

    def remove(self, name: str) -> None:
        """Delete a file."""
        with self._translate_errors("removed", name):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def delete(self) -> None:
        """Delete the folder and everything below it, if it is there."""
        with self._translate_errors("removed"):
            if self.filesystem.get_file_info(self.path).type == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)

    def list_files(self) -> list[str]:
        """Return the names of the files directly in this folder, sorted."""
        return sorted(str(entry.base_name) for entry in self._list_entries(recursive=False) if entry.is_file)

    def list_dirs(self) -> list[str]:
        """Return the names of the folders directly in this folder, sorted."""
        entries = self._list_entries(recursive=False)
        return sorted(str(entry.base_name) for entry in entries if entry.type == fs.FileType.Directory)

    def walk(self) -> list[fs.FileInfo]:
        """Return all files below this folder, sorted by path."""
        return sorted((e for e in self._list_entries(recursive=True) if e.is_file), key=lambda entry: str(entry.path))

    def _list_entries(self, recursive: bool) -> list[fs.FileInfo]:
        with self._translate_errors("listed"):
            selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
            return list(self.filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        with (
            self._translate_errors("read", name),
            self.filesystem.open_input_stream(f"{self.path}/{name}") as stream,
        ):
            return bytes(stream.read())

    def read_json(self, name: str) -> Any:
        """Return the value in a JSON file.

        Raises:
            UserError: if the file is not there or not valid JSON.
        """
        try:
            return json.loads(self.read(name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.uri}/{name} is not valid JSON: {error}") from error

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a Parquet file, or some of its columns."""
        return pq.read_table(io.BytesIO(self.read(name)), columns=None if columns is None else list(columns))

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: a local file is renamed into place, an S3 object appears when it is complete."""
        target = f"{self.path}/{name}"
        with self._translate_errors("written", name):
            if not self.is_local:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(content)
                return
            partial = Path(f"{target}.{uuid.uuid4().hex}.partial")
            try:
                partial.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(content)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any, *, sort_keys: bool = False) -> None:
        """Write a value as indented JSON."""
        self.write(name, (json.dumps(value, indent=2, sort_keys=sort_keys) + "\n").encode())

    def write_table(self, name: str, table: pa.Table, **options: Any) -> bytes:
        """Write a Parquet file and return its content; `options` are those of `pyarrow.parquet.write_table`."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **options)
        content = buffer.getvalue()
        self.write(name, content)
        return content

    def upload(self, local: Path) -> None:
        """Copy a local folder's content into this one; a local target is replaced as a whole."""
        with self._translate_errors("written"):
            if not self.is_local:
                if self.filesystem.get_file_info(self.path).type == fs.FileType.Directory:
                    self.filesystem.delete_dir_contents(self.path)
                fs.copy_files(str(local), self.path, destination_filesystem=self.filesystem)
                return
            partial = Path(f"{self.path}.{uuid.uuid4().hex}.partial")
            try:
                shutil.copytree(local, partial)
                shutil.rmtree(self.path, ignore_errors=True)
                partial.replace(self.path)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def copy_to_local(self, scratch: Path) -> Path:
        """Return this folder if it is local, else a copy of it under `scratch`."""
        if self.is_local:
            return Path(self.path)
        with self._translate_errors("read"):
            fs.copy_files(self.path, str(scratch), source_filesystem=self.filesystem)
        return scratch

    @contextmanager
    def _translate_errors(self, done: str, name: str = "") -> Iterator[None]:
        """Raise the file system's errors as one-line errors that name the file."""
        path = f"{self.uri}/{name}" if name else self.uri
        try:
            yield
        except OSError as error:
            if done == "read" and isinstance(error, FileNotFoundError):
                raise UserError(f"{path}: no such {'file' if name else 'folder'}") from None
            raise StorageError(f"{path}: cannot be {done}: {error.strerror or get_first_line(error)}") from error
