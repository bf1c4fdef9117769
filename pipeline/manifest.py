"""Manifests: `manifest.json` records a folder's inputs, code version, recipe and content."""

import os
import subprocess
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from pydantic import Field

import nasa
from pipeline.errors import UserError, invalid
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from pipeline.strict_model import StrictModel

NAME = "manifest.json"
RUN_FILE = "run.json"  # present in the folder of a distillation that was begun
CODE = "NASA_DISTILL_CODE"  # the code version of a submitted job, which has no git
M = TypeVar("M", bound="Manifest")


def get_code_version() -> str:
    """Return the package's version and, in a checkout, the commit; on a cluster those of the submitted checkout."""
    if submitted := os.environ.get(CODE):
        return submitted
    root = Path(__file__).parent.parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"{nasa.__version__}+{commit}" if commit else nasa.__version__


class Manifest(StrictModel):
    """The base of manifests. `kind` tells them apart; `command` is the command that writes one."""

    command: ClassVar[str]
    kind: str
    code: str = Field(default_factory=get_code_version)


class DataFile(StrictModel):
    """A data file: number of rows, size, hash, and the source of its prompts if it is a shard."""

    rows: int
    bytes: int
    sha256: str
    source: str | None = None


class DistilledManifest(Manifest):
    """The manifest of a distilled student: its recipe, inputs and last metrics."""

    command = "distill"
    kind: Literal["distill"] = "distill"
    recipe: Recipe
    teacher_sha256: str
    student_sha256: str
    student_raw_sha256: str
    prompts: dict[str, DataFile]
    mlflow_run: str
    metrics: dict[str, int | float]

    @property
    def step(self) -> int:
        """The step of the checkpoint that became the student."""
        return int(self.metrics["step"])


def write(folder: Folder, manifest: Manifest) -> None:
    """Write a manifest, after everything else: a folder with a manifest is complete."""
    folder.write_json(NAME, manifest.to_dict(), sort_keys=True)


def read(folder: Folder, kind: type[M]) -> M:
    """Return the manifest of a complete folder of this kind.

    Raises:
        UserError: if there is none, or one of another kind, with the command that makes one.
    """
    expected, path = kind.model_fields["kind"].default, f"{folder.uri}/{NAME}"
    if not folder.exists(NAME):
        raise UserError(
            f"{folder.uri}: no complete {expected} here (no {NAME}); run `python -m jobs {kind.command}` first"
        )
    values = folder.read_json(NAME)
    stored = values.get("kind") if isinstance(values, dict) else type(values).__name__
    if stored != expected:
        raise invalid(f"{path}: kind", stored, repr(expected))
    return kind.from_values(values, path)
