"""Folders that are local or on S3, behind one small interface; every write is atomic."""

import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from pipeline.errors import UserError

ATTEMPTS = 8  # of a request to S3 that fails for a while, such as with 503, within about a minute


@dataclass(frozen=True)
class Folder:
    """A folder by its URI: an absolute local path, or `s3://bucket/prefix`.

    A store other than Amazon's is named by the environment variable AWS_ENDPOINT_URL.
    """

    uri: str

    @staticmethod
    def of(place: str | Path) -> "Folder":
        text = str(place)
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
        return fs.S3FileSystem(
            endpoint_override=os.environ.get("AWS_ENDPOINT_URL"),
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            connect_timeout=10,
            request_timeout=60,
        )

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.uri}/{name}")

    @property
    def parent(self) -> "Folder":
        return Folder(self.uri.rpartition("/")[0])

    def has(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(f"{self.path}/{name}").is_file)

    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file."""
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        return int(info.size) if info.is_file else None

    def remove(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.path}/{name}")

    def delete(self) -> None:
        """The folder and all in it, if it is there."""
        if self.filesystem.get_file_info(self.path).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)

    def names(self) -> list[str]:
        """The files in this folder itself."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.is_file)

    def listing(self) -> list[fs.FileInfo]:
        """All files below, by their paths."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True, allow_not_found=True))
        return sorted((entry for entry in found if entry.is_file), key=lambda entry: str(entry.path))

    def read(self, name: str) -> bytes:
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            raise UserError(f"{self.uri}/{name}: no such file") from None
        except OSError as error:
            raise UserError(f"{self.uri}/{name}: cannot be read: {first_line(error)}") from None
        return content

    def write(self, name: str, content: bytes) -> None:
        """All of the file or nothing: a local file is renamed into place, an S3 object appears when complete."""
        target = f"{self.path}/{name}"
        if not self.is_local:
            self._write_object(target, content)
            return
        partial = f"{target}.{uuid.uuid4().hex}.partial"
        try:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(partial).write_bytes(content)
            os.replace(partial, target)
        except OSError as error:
            with suppress(OSError):
                os.unlink(partial)
            raise UserError(f"{target}: cannot be written: {error.strerror}") from error

    def _write_object(self, target: str, content: bytes) -> None:
        try:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
        except OSError as error:
            raise UserError(f"s3://{target}: cannot be written: {first_line(error)}") from error

    def upload(self, local: Path) -> None:
        """Copy a local folder's content into this one; a local target is replaced as a whole."""
        if not self.is_local:
            self._upload_objects(local)
            return
        partial = Path(f"{self.path}.{uuid.uuid4().hex}.partial")
        try:
            shutil.copytree(local, partial)
            shutil.rmtree(self.path, ignore_errors=True)
            os.replace(partial, self.path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def _upload_objects(self, local: Path) -> None:
        try:
            if self.filesystem.get_file_info(self.path).type == fs.FileType.Directory:
                self.filesystem.delete_dir_contents(self.path)
            fs.copy_files(str(local), self.path, destination_filesystem=self.filesystem)
        except OSError as error:
            raise UserError(f"{self.uri}: cannot be written: {error}") from error

    def local_copy(self, scratch: Path) -> Path:
        """This folder if it is local, else a copy of it under `scratch`."""
        if self.is_local:
            return Path(self.path)
        try:
            fs.copy_files(self.path, str(scratch), source_filesystem=self.filesystem)
        except FileNotFoundError:
            raise UserError(f"{self.uri}: no such folder") from None
        return scratch


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
