"""SHA-256 of files, folders and values."""

import hashlib
import json
from pathlib import Path
from typing import Any


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a local file, read in parts."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of all files below a local folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + hash_file(file).encode())
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of a value's JSON with sorted keys, which does not depend on the order of a dictionary."""
    return hash_bytes(json.dumps(value, sort_keys=True).encode())
