"""Folders that are local or on S3, behind one small interface; every write is atomic."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyarrow import fs

from pipeline.errors import StorageError, UserError

ATTEMPTS = 12
S3 = re.compile(r"s3://[^/\s]+")


class RetryingS3(fs.S3FileSystem):
    """It asks as often in every process: pyarrow's own forgets the retries where it is pickled, as for Ray Train's."""

    def __init__(self, endpoint: str | None) -> None:
        super().__init__(
            endpoint_override=endpoint,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            connect_timeout=10,
            request_timeout=60,
        )
        self.endpoint = endpoint

    def __reduce__(self) -> Any:
        return type(self), (self.endpoint,)


@dataclass(frozen=True)
class Folder:
    """A folder by its URI: an absolute local path, or `s3://bucket/prefix`.

    A store other than Amazon's is named by the environment variable AWS_ENDPOINT_URL.
    """

    uri: str

    @staticmethod
    def of(place: str | Path) -> "Folder":
        text = str(place)
        if text.startswith("s3:") and not S3.match(text):
            raise UserError(f"{text!r} is not allowed; allowed: s3://BUCKET/FOLDER, or a path of this machine")
        return Folder(text.rstrip("/") if text.startswith("s3://") else str(Path(text).expanduser().absolute()))

    @property
    def is_local(self) -> bool:
        return not self.uri.startswith("s3://")

    @property
    def path(self) -> str:
        """The path within `filesystem`."""
        return self.uri.removeprefix("s3://")

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        if self.is_local:
            return fs.LocalFileSystem()
        return RetryingS3(os.environ.get("AWS_ENDPOINT_URL"))

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.uri}/{name}")

    @property
    def parent(self) -> "Folder":
        return Folder.of(self.uri.rpartition("/")[0] or "/")

    def has(self, name: str) -> bool:
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file."""
        with self._told("read", name):
            info = self.filesystem.get_file_info(f"{self.path}/{name}")
        return int(info.size) if info.is_file else None

    def remove(self, name: str) -> None:
        with self._told("removed", name):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def delete(self) -> None:
        """The folder and all in it, if it is there."""
        with self._told("removed"):
            if self.filesystem.get_file_info(self.path).type == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)

    def names(self) -> list[str]:
        """The files in this folder itself."""
        return sorted(str(entry.base_name) for entry in self._files(recursive=False))

    def folders(self) -> list[str]:
        """The folders in this folder itself."""
        found = self._entries(recursive=False)
        return sorted(str(entry.base_name) for entry in found if entry.type == fs.FileType.Directory)

    def listing(self) -> list[fs.FileInfo]:
        """All files below, by their paths."""
        return sorted(self._files(recursive=True), key=lambda entry: str(entry.path))

    def _files(self, recursive: bool) -> list[fs.FileInfo]:
        return [entry for entry in self._entries(recursive) if entry.is_file]

    def _entries(self, recursive: bool) -> list[fs.FileInfo]:
        with self._told("listed"):
            selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
            return list(self.filesystem.get_file_info(selector))

    def read(self, name: str) -> bytes:
        with self._told("read", name), self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """All of the file or nothing: a local file is renamed into place, an S3 object appears when complete."""
        target = f"{self.path}/{name}"
        with self._told("written", name):
            if not self.is_local:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(content)
                return
            partial = f"{target}.{uuid.uuid4().hex}.partial"
            try:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                Path(partial).write_bytes(content)
                os.replace(partial, target)
            except OSError:
                with suppress(OSError):
                    os.unlink(partial)
                raise

    def upload(self, local: Path) -> None:
        """Copy a local folder's content into this one; a local target is replaced as a whole."""
        with self._told("written"):
            if not self.is_local:
                if self.filesystem.get_file_info(self.path).type == fs.FileType.Directory:
                    self.filesystem.delete_dir_contents(self.path)
                fs.copy_files(str(local), self.path, destination_filesystem=self.filesystem)
                return
            partial = Path(f"{self.path}.{uuid.uuid4().hex}.partial")
            try:
                shutil.copytree(local, partial)
                shutil.rmtree(self.path, ignore_errors=True)
                os.replace(partial, self.path)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise

    def local_copy(self, scratch: Path) -> Path:
        """This folder if it is local, else a copy of it under `scratch`."""
        if self.is_local:
            return Path(self.path)
        with self._told("read"):
            fs.copy_files(self.path, str(scratch), source_filesystem=self.filesystem)
        return scratch

    @contextmanager
    def _told(self, done: str, name: str = "") -> Iterator[None]:
        """What the file system raises as one line."""
        place = f"{self.uri}/{name}" if name else self.uri
        try:
            yield
        except OSError as error:
            if done == "read" and isinstance(error, FileNotFoundError):
                raise UserError(f"{place}: no such {'file' if name else 'folder'}") from None
            raise StorageError(f"{place}: cannot be {done}: {error.strerror or first_line(error)}") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
