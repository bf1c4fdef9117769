"""Unneeded parts of the version cache: cut-off downloads, and copies of versions without an alias."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.tracking import MlflowClient

from pipeline import tracking
from pipeline.cleanup.run_cleanup import Removable, measure
from pipeline.registry import mlflow_registry
from pipeline.registry.version_cache import build_folder_name, locate_cache_folder
from pipeline.storage import Folder

PARTIAL = ".partial"  # suffix of a download that is not in place yet


def find_in_cache(tracking_uri: str) -> list[Removable]:
    """Return what the cache no longer needs.

    A version is kept if an alias names it, a process holds its lock, or MLflow does not have it: then the copy may
    be the only one, or another server's.

    Raises:
        StorageError: if MLflow does not answer.
    """
    cache = locate_cache_folder()
    folders = [path for path in sorted(cache.glob("*")) if path.is_dir() and not path.is_symlink()]
    if not folders:
        return []
    with tracking.open_client(tracking_uri) as client:
        copies = _list_unnamed_copies(client)
    found = []
    for path in folders:
        with hold_unused(path) as unused:
            reason = "download that was cut off" if path.name.endswith(PARTIAL) else copies.get(path.name, "")
            if unused and reason:
                folder = Folder.from_uri(path)
                found.append(Removable(folder, "", reason, measure(folder)))
    return found


def remove_from_cache(entry: Removable) -> bool:
    """Delete an entry unless a process has begun to use it; return whether it was deleted."""
    with hold_unused(Path(entry.folder.path)) as unused:
        if unused:
            entry.remove()
    return unused


@contextmanager
def hold_unused(folder: Path) -> Iterator[bool]:
    """Hold the lock of a version's folder; yield False if a download holds it."""
    version = folder.name.rsplit(".", 2)[0] if folder.name.endswith(PARTIAL) else folder.name
    with folder.with_name(f"{version}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _list_unnamed_copies(client: MlflowClient) -> dict[str, str]:
    """Return the cache's folder names of registered versions without an alias, and why they are not needed."""
    copies = {}
    for name in mlflow_registry.list_models(client):
        named = set(mlflow_registry.get_aliases(client, name).values())
        for version in mlflow_registry.list_versions(client, name):
            sha256 = version.tags.get(mlflow_registry.STUDENT, "")
            if sha256 and str(version.version) not in named:
                key = build_folder_name(name, str(version.version), sha256)
                copies[key] = f"copy of version {version.version} of {name}, which has no alias"
    return copies
