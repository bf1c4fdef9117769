"""Models in a folder, on S3, or on the Hugging Face hub at a pinned revision."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import TransientError, UserError
from pipeline.storage import Folder

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILE_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
VARIANTS = ("*.fp16.safetensors", "*non_ema*", "*/flax_*", "*openvino*", "safety_checker/*")
HUB_SECONDS = 10


def locate_cache() -> Path:
    """Return this project's cache folder, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nasa-distill"


def is_hub_id(path_or_id: str) -> bool:
    """Tell whether this is `organisation/name` and no local folder."""
    return bool(HUB_ID.fullmatch(path_or_id)) and not Path(path_or_id).exists()


def download_folder(path_or_id: str, field: str, revision: str = "main", wanted: Sequence[str] = FILE_PATTERNS) -> Path:
    """Return a local folder, downloading from S3 or the hub; the hub's token is read from HF_TOKEN.

    Only files that match `wanted` are downloaded from the hub.
    """
    if not is_hub_id(path_or_id):
        folder = Folder.from_uri(path_or_id)
        return Path(folder.path) if folder.is_local else _download_from_s3(folder)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                path_or_id, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(VARIANTS)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise (UserError if _is_user_error(error) else TransientError)(
            f"{field}: {path_or_id!r} at {revision!r} cannot be downloaded from the hub: {str(error).splitlines()[0]}. "
            "Use a folder, s3://, or a hub id whose terms the account of HF_TOKEN has accepted."
        ) from None


def describe_hub_status(path_or_id: str, revision: str, *, missing: str) -> str:
    """Return a line that says whether a model is cached or on the hub; it starts with `missing` if it is not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return f"in {snapshot_download(path_or_id, revision=revision, local_files_only=True)}"
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        info = query_hub(path_or_id, revision)
    except TransientError as error:
        return f"{missing}: {error}"
    return f"{path_or_id} at {info.sha}, to be fetched from the hub"


def query_hub(path_or_id: str, revision: str) -> Any:
    """Ask the hub about a model, for at most `HUB_SECONDS`.

    Raises:
        TransientError: if it does not answer, or knows no such model.
    """
    from huggingface_hub import model_info

    try:
        return model_info(path_or_id, revision=revision, timeout=HUB_SECONDS)
    except Exception as error:  # errors of any HTTP library that the hub's client uses
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TransientError(f"{path_or_id} at {revision} cannot be downloaded from the hub: {line}") from None


def _is_user_error(error: Exception) -> bool:
    """Tell whether the hub has no such model or the token may not read it; other errors are transient."""
    response = getattr(error, "response", None)
    return isinstance(error, ValueError) or (response is not None and response.status_code in (401, 403, 404))


def _download_from_s3(folder: Folder) -> Path:
    """Download an S3 folder into the local cache, shared by all processes; refresh it when a file changes."""
    files = folder.walk()
    fingerprint = "\0".join([folder.uri, *(f"{file.path} {file.size} {file.mtime_ns}" for file in files)])
    cache = locate_cache()
    target = cache / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f"{target.name}.{uuid.uuid4().hex}.partial"
    try:
        folder.copy_to_local(partial)
        partial.replace(target)
    except OSError:  # another process was first
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
