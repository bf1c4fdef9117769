"""A lock in a folder, local or on S3, that ends with its holder.

The holder writes a new beat into it every few seconds. Whoever wants it watches for as long as a beat may stay out, by
a clock of its own that cannot jump: if nothing changed the holder is gone, and the lock is taken over. Every write says
which content it replaces, so that of two that want it one has it.
"""

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import StorageError, UserError
from pipeline.storage import ATTEMPTS, Folder, first_line

SECONDS = 60.0  # without a beat, and the holder is gone
FREE: dict[str, Any] = {"holder": "", "beat": 0}


class BusyError(RuntimeError):
    """Another holder has the lease, as `str(error)` names it."""


class Lease:
    """`with Lease(folder, "what I do"):`; raises BusyError where it is held.

    `on_lost` is called, in another thread, where another has taken it over or the store was away for too long.
    """

    def __init__(
        self,
        folder: Folder,
        holder: str,
        seconds: float = SECONDS,
        on_lost: Callable[[], None] = lambda: None,
        name: str = "lease.json",
    ) -> None:
        self.store, self.holder, self.seconds, self.on_lost = store_of(folder, name, seconds), holder, seconds, on_lost
        self.own, self.beat = uuid.uuid4().hex, 0
        self.lost, self._done = False, threading.Event()
        self._thread = threading.Thread(target=self._beats, daemon=True)

    def __enter__(self) -> "Lease":
        content, version = self.store.read()
        if content and content["holder"]:
            content, version = self._watch(content, version)
        self.version = self.store.swap(version, self._content()) or self._mine()
        if self.version is None:
            raise BusyError(str((self.store.read()[0] or FREE)["holder"] or "another"))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if not self.lost:
            with suppress(StorageError):  # it ends without a beat too
                self.store.swap(self.version, FREE)

    def _watch(self, content: dict[str, Any], version: Any) -> tuple[dict[str, Any], Any]:
        """What is there when no beat has come for long enough."""
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            time.sleep(self.seconds / 20)
            found, now = self.store.read()
            if found and not found["holder"]:
                return found, now
            if now != version:
                raise BusyError(str((found or content)["holder"]))
        return content, version

    def _content(self) -> dict[str, Any]:
        return {"holder": self.holder, "id": self.own, "beat": self.beat}

    def _beats(self) -> None:
        """Whatever ends the beats before the holder has done tells it so."""
        try:
            self._until_lost_or_done()
        finally:
            if not self._done.is_set():
                self.lost = True
                self.on_lost()

    def _until_lost_or_done(self) -> None:
        """A store that is away for a while does not end the lease; one that has another's content does."""
        since = time.monotonic()
        while not self._done.wait(self.seconds / 6):
            self.beat += 1
            try:
                version = self.store.swap(self.version, self._content(), True) or self._mine(True)
            except UserError:
                if time.monotonic() - since < 0.7 * self.seconds:
                    continue
                version = None
            if version is None:
                return
            self.version, since = version, time.monotonic()

    def _mine(self, hasty: bool = False) -> Any:
        """A write that was answered too late to know of it."""
        content, version = self.store.read(hasty)
        return version if content and content.get("id") == self.own else None


class Watch:
    """Whether somebody has the lease, for one who does not want it: seen from one look to the next, without waiting."""

    def __init__(self, folder: Folder, seconds: float = SECONDS, name: str = "lease.json") -> None:
        self.store, self.seconds = store_of(folder, name, seconds), seconds
        self.version: Any = None
        self.since = 0.0

    def is_held(self) -> bool:
        """A holder without a beat for so many seconds is gone; one that is seen for the first time may be there."""
        content, version = self.store.read()
        if not content or not content["holder"]:
            return False
        if version != self.version:
            self.version, self.since = version, time.monotonic()
        return time.monotonic() - self.since < self.seconds


class _LocalStore:
    """Compared and replaced under a lock of the file system's; a version is the content."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, hasty: bool = False) -> tuple[dict[str, Any] | None, Any]:
        try:
            found = self.path.read_bytes()
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        return _parsed(found, str(self.path)), found

    def swap(self, version: Any, content: dict[str, Any], hasty: bool = False) -> Any:
        """The new version, or None where it was not `version` any more."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(f"{self.path}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.read()[1] != version:
                    return None
                written = json.dumps(content).encode()
                partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")
                partial.write_bytes(written)
                os.replace(partial, self.path)
                return written
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error


class _ObjectStore:
    """By conditional writes; a version is the object's ETag.

    A request is tried again for about two minutes; a hasty one once, and is over before a beat is missed.
    """

    def __init__(self, folder: Folder, name: str, seconds: float) -> None:
        import boto3
        from botocore.config import Config

        bucket, _, prefix = folder.path.partition("/")
        self.where = {"Bucket": bucket, "Key": f"{prefix}/{name}".lstrip("/")}
        soon = max(1.0, seconds / 20)
        patient = Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, connect_timeout=10)
        hasty = Config(retries={"total_max_attempts": 1}, connect_timeout=soon, read_timeout=soon)
        self.clients = [boto3.client("s3", config=config) for config in (patient, hasty)]

    def read(self, hasty: bool = False) -> tuple[dict[str, Any] | None, Any]:
        found = self._answer("get_object", hasty)
        return (_parsed(found["Body"], self.where["Key"]), found["ETag"]) if found else (None, None)

    def swap(self, version: Any, content: dict[str, Any], hasty: bool = False) -> Any:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        found = self._answer("put_object", hasty, Body=json.dumps(content).encode(), **condition)
        return found["ETag"] if found else None

    def _answer(self, method: str, hasty: bool, **request: Any) -> dict[str, Any] | None:
        """None where the object is not there, or another than was said."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = getattr(self.clients[hasty], method)(**self.where, **request)
            return {**found, "Body": found["Body"].read()} if "Body" in found else dict(found)
        except (BotoCoreError, ClientError) as error:
            told = getattr(error, "response", None) or {}  # a timeout has one that is None
            status = told.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in (404, 409, 412) and told["Error"]["Code"] != "NoSuchBucket":
                return None
            raise StorageError(f"s3://{'/'.join(self.where.values())}: {first_line(error)}") from error


def store_of(folder: Folder, name: str, seconds: float = SECONDS) -> _LocalStore | _ObjectStore:
    return _LocalStore(Path(folder.path) / name) if folder.is_local else _ObjectStore(folder, name, seconds)


def _parsed(found: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(found)
        return {**content, "holder": str(content["holder"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: is no lease; allowed: one that this program wrote, or none") from None
