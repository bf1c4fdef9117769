"""`manifest.json`: what a folder was made from, by which code, with which recipe, and what is in it."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nasa
from pipeline.errors import UserError, invalid
from pipeline.storage import Folder

NAME = "manifest.json"
RUN_FILE = "run.json"  # in the folder of a distillation that was begun
WORDS = {str: "a string", int: "a whole number", dict: "an object"}
MADE_BY = {"benchmarks": "prepare-benchmarks", "student": "distill"}  # kinds that are not named as their command
FIELDS: dict[str, dict[str, type]] = {  # what other steps read of each kind
    "prepare": {"recipe": str, "files": dict, "sources": dict, "prompts": int, "epoch": int},
    "distill": {"recipe": str, "teacher_sha256": str, "student_sha256": str, "prompts": dict, "mlflow_run": str},
    "evaluate": {"recipe": str, "student_sha256": str},
    "student": {"step": int, "student_sha256": str},
}
CODE = "NASA_DISTILL_CODE"  # what a submitted job was packed from: it has no git


def write(folder: Folder, kind: str, **content: Any) -> None:
    """Written last: a folder with a manifest is complete."""
    record = {"kind": kind, "code": code_version(), **content}
    folder.write(NAME, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def read(folder: Folder, kind: str) -> dict[str, Any]:
    """Return the manifest of a complete folder of this kind.

    Raises:
        UserError: where there is none, or one of another kind, with the command that makes one.
    """
    if not folder.exists(NAME):
        command = MADE_BY.get(kind, kind)
        raise UserError(f"{folder.uri}: no complete {kind} here (no {NAME}); run `python -m jobs {command}` first")
    try:
        record: dict[str, Any] = json.loads(folder.read(NAME))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder.uri}/{NAME}: not valid JSON: {error}") from error
    found = record.get("kind") if isinstance(record, dict) else type(record).__name__
    if found != kind:
        raise invalid(f"{folder.uri}: kind", found, repr(kind))
    require(record, FIELDS.get(kind, {}), f"{folder.uri}/{NAME}")
    return record


def require(record: Any, fields: Mapping[str, type], where: str) -> None:
    """Raise a UserError where a field is missing or of another type."""
    if not isinstance(record, dict):
        raise invalid(where, record, "an object")
    for name, kind in fields.items():
        value = record.get(name)
        if type(value) is not kind:
            raise invalid(f"{where}: {name}", value, WORDS[kind])


def code_version() -> str:
    """Return the package's version and, in a checkout, the commit; on a cluster those of the submitted checkout."""
    if submitted := os.environ.get(CODE):
        return submitted
    root = Path(__file__).parent.parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"{nasa.__version__}+{commit}" if commit else nasa.__version__
