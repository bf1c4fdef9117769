"""Registered versions in this machine's cache, for processes that generate with them."""

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import tracking
from pipeline.errors import invalid
from pipeline.hashing import hash_folder
from pipeline.model_download import locate_cache
from pipeline.registry import mlflow_registry
from pipeline.registry.mlflow_registry import CHAMPION
from pipeline.registry.version_artifacts import STUDENT
from pipeline.registry.version_download import DownloadedVersion, download


def find_version(tracking_uri: str, name: str, alias: str = CHAMPION) -> str:
    """Return the number of the version that an alias names.

    Raises:
        UserError: There is no such model or alias.
        StorageError: MLflow does not answer.
    """
    with tracking.open_client(tracking_uri) as client:
        mlflow_registry.require_model(client, name)
        aliases = mlflow_registry.get_aliases(client, name)
    if alias not in aliases:
        raise invalid("alias", alias, f"an alias of {name}: {', '.join(sorted(aliases)) or 'it has none'}")
    return aliases[alias]


def fetch_version(tracking_uri: str, name: str, number: str) -> DownloadedVersion:
    """Return a version in the cache, downloaded and checked if it is not there, once for all processes of a machine.

    Raises:
        UserError: There is no such version, or its student is not the one that was registered.
        StorageError: MLflow does not answer.
    """
    with tracking.open_client(tracking_uri) as client:
        tags = mlflow_registry.get_version(client, name, number, "version").tags
    expected = tags.get(mlflow_registry.STUDENT, "")
    folder = locate_cache_folder() / build_folder_name(name, number, expected)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if not (folder.is_dir() and hash_folder(folder / STUDENT) == expected):
            _download_into(tracking_uri, name, number, folder)
    return DownloadedVersion(name, number, folder)


def locate_cache_folder() -> Path:
    """Return the cache's folder, which may not exist yet."""
    return locate_cache() / "versions"


def build_folder_name(name: str, number: str, student_sha256: str) -> str:
    """Return the name of a version's folder in the cache; other weights have another one."""
    return f"{name}-{number}-{student_sha256[:16]}"


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system releases when the process ends."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download_into(tracking_uri: str, name: str, number: str, folder: Path) -> None:
    """Download beside a folder that is missing or damaged, and move the version into place, whole."""
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    try:
        download(tracking_uri, name, partial, number)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
