"""A lease in a folder, local or on S3, that expires when its holder stops sending heartbeats.

The holder writes a heartbeat every few seconds. A process that wants the lease watches it for `ttl` seconds on a
monotonic clock: if nothing changed, the holder is gone, and the lease is taken over. Every write is a compare-and-swap,
so that one of two competing processes gets the lease.
"""

import fcntl
import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline import retry as retries
from pipeline.errors import StorageError, UserError, get_first_line
from pipeline.storage import Folder
from pipeline.strict_model import STRICT

TTL_SECONDS = 60.0  # time without a heartbeat after which the lease expires
Version = Any  # the stored lease's bytes in a local file, its ETag on S3, or None


@dataclass(frozen=True, config=STRICT)
class LeaseRecord:
    """The stored lease: its holder (empty when it is free), a token of the holder's process, and its heartbeats."""

    holder: str = ""
    token: str = ""
    heartbeat: int = 0


FREE = LeaseRecord()
_RECORD = TypeAdapter(LeaseRecord)


class LeaseStore(Protocol):
    """The storage of a lease."""

    def read(self, *, retry: bool = True) -> tuple[LeaseRecord | None, Version]:
        """Return the record and its version."""

    def compare_and_swap(self, version: Version, record: LeaseRecord, *, retry: bool = True) -> Version:
        """Replace the record of this version; return the new version, or None if the stored one has changed."""


class BusyError(RuntimeError):
    """Another process holds the lease; `str(error)` names the holder."""


class Lease:
    """`with Lease(folder, "what I do"):`; raises BusyError if another process holds the lease.

    `on_lost` is called in another thread when another process has taken the lease over, or the store was unavailable
    for too long. `lost` is True from then on.
    """

    def __init__(
        self,
        folder: Folder,
        holder: str,
        ttl: float = TTL_SECONDS,
        on_lost: Callable[[], None] = lambda: None,
        name: str = "lease.json",
    ) -> None:
        self.store, self.holder, self.ttl, self.on_lost = lease_store(folder, name, ttl), holder, ttl, on_lost
        self.lost = False
        self._token, self._heartbeat = uuid.uuid4().hex, 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)

    def __enter__(self) -> "Lease":
        """Acquire the lease, waiting up to `ttl` seconds if its holder may be dead."""
        record, version = self.store.read()
        if record and record.holder:
            record, version = self._wait_for_expiry(record, version)
        self._version = self.store.compare_and_swap(version, self._record()) or self._find_own_version()
        if self._version is None:
            raise BusyError((self.store.read()[0] or FREE).holder or "another process")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lease, unless it was lost."""
        self._released.set()
        self._thread.join()
        if not self.lost:
            with suppress(StorageError):  # without heartbeats it expires anyway
                self.store.compare_and_swap(self._version, FREE)

    def _wait_for_expiry(self, record: LeaseRecord, version: Version) -> tuple[LeaseRecord, Version]:
        """Return the record and version that did not change for `ttl` seconds."""
        deadline = time.monotonic() + self.ttl
        while time.monotonic() < deadline:
            time.sleep(self.ttl / 20)
            current, current_version = self.store.read()
            if current and not current.holder:
                return current, current_version
            if current_version != version:
                raise BusyError((current or record).holder)
        return record, version

    def _record(self) -> LeaseRecord:
        return LeaseRecord(self.holder, self._token, self._heartbeat)

    def _send_heartbeats(self) -> None:
        """Send heartbeats until the lease is released; if they end earlier, report the lease as lost."""
        try:
            self._wait_until_lost_or_released()
        finally:
            if not self._released.is_set():
                self.lost = True
                self.on_lost()

    def _wait_until_lost_or_released(self) -> None:
        """Tolerate a store that is unavailable for a while; end when another process holds the lease."""
        last_success = time.monotonic()
        while not self._released.wait(self.ttl / 6):
            self._heartbeat += 1
            try:
                version = self.store.compare_and_swap(self._version, self._record(), retry=False)
                version = version or self._find_own_version(retry=False)
            except UserError:
                if time.monotonic() - last_success < 0.7 * self.ttl:
                    continue
                version = None
            if version is None:
                return
            self._version, last_success = version, time.monotonic()

    def _find_own_version(self, *, retry: bool = True) -> Version:
        """Return the version of our own record, whose write succeeded though its response was lost; else None."""
        record, version = self.store.read(retry=retry)
        return version if record and record.token == self._token else None


class LeaseObserver:
    """An observer that tells whether a lease is held, by comparing one call with the next."""

    def __init__(self, folder: Folder, ttl: float = TTL_SECONDS, name: str = "lease.json") -> None:
        self.store, self.ttl = lease_store(folder, name, ttl), ttl
        self._version: Version = None
        self._changed_at = 0.0

    def is_held(self) -> bool:
        """Tell whether there was a heartbeat within `ttl` seconds; a holder seen for the first time counts as alive."""
        record, version = self.store.read()
        if not record or not record.holder:
            return False
        if version != self._version:
            self._version, self._changed_at = version, time.monotonic()
        return time.monotonic() - self._changed_at < self.ttl


class _LocalStore:
    """A file, compared and replaced under a file lock; its version is its content."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, *, retry: bool = True) -> tuple[LeaseRecord | None, Version]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        return _parse(content, str(self.path)), content

    def compare_and_swap(self, version: Version, record: LeaseRecord, *, retry: bool = True) -> Version:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with Path(f"{self.path}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.read()[1] != version:
                    return None
                content = _dump(record)
                partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")
                partial.write_bytes(content)
                partial.replace(self.path)
                return content
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error


class _ObjectStore:
    """An S3 object, replaced by conditional writes; its version is its ETag.

    A request is retried for about two minutes; with `retry=False` it is sent once, with a timeout below a heartbeat.
    """

    def __init__(self, folder: Folder, name: str, ttl: float) -> None:
        import boto3
        from botocore.config import Config

        bucket, _, prefix = folder.path.partition("/")
        self.where = {"Bucket": bucket, "Key": f"{prefix}/{name}".lstrip("/")}
        timeout = max(1.0, ttl / 20)
        once = Config(retries={"total_max_attempts": 1}, connect_timeout=timeout, read_timeout=timeout)
        policy = {"mode": "standard", "total_max_attempts": retries.MAX_ATTEMPTS}
        self.clients = {
            True: boto3.client("s3", config=Config(retries=policy, connect_timeout=10)),
            False: boto3.client("s3", config=once),
        }

    def read(self, *, retry: bool = True) -> tuple[LeaseRecord | None, Version]:
        response = self._request("get_object", retry)
        return (_parse(response["Body"], self.where["Key"]), response["ETag"]) if response else (None, None)

    def compare_and_swap(self, version: Version, record: LeaseRecord, *, retry: bool = True) -> Version:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        response = self._request("put_object", retry, Body=_dump(record), **condition)
        return response["ETag"] if response else None

    def _request(self, method: str, retry: bool, **arguments: Any) -> dict[str, Any] | None:
        """Return the response, or None if the object is missing or its condition failed."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            response = getattr(self.clients[retry], method)(**self.where, **arguments)
            return {**response, "Body": response["Body"].read()} if "Body" in response else dict(response)
        except (BotoCoreError, ClientError) as error:
            response = getattr(error, "response", None) or {}  # None for a timeout
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in (404, 409, 412) and response["Error"]["Code"] != "NoSuchBucket":
                return None
            raise StorageError(f"s3://{'/'.join(self.where.values())}: {get_first_line(error)}") from error


def lease_store(folder: Folder, name: str, ttl: float = TTL_SECONDS) -> LeaseStore:
    """Return the store of a lease in a local or S3 folder."""
    return _LocalStore(Path(folder.path) / name) if folder.is_local else _ObjectStore(folder, name, ttl)


def _dump(record: LeaseRecord) -> bytes:
    return json.dumps(asdict(record)).encode()


def _parse(content: bytes, where: str) -> LeaseRecord:
    try:
        return _RECORD.validate_json(content)
    except ValidationError:
        raise UserError(f"{where}: got invalid content; expected a lease.") from None
