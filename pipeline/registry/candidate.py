"""A student that may be registered, with all that is known of where it comes from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import manifest
from pipeline.storage import Folder

SHORT = 12  # characters of a hash that people read


@dataclass(frozen=True)
class Candidate:
    """A student and its lineage, as plain data.

    Attributes:
        student: its diffusers folder, local or s3://.
        student_sha256: that folder's hash (`manifest.folder_hash`).
        recipe: the whole resolved recipe, as TOML.
        teacher: as the recipe names it.
        teacher_sha256: its folder's hash.
        prompts: the prepared prompts' files with their hashes, of the manifest of `prepare`.
        mlflow_run: the training run.
        code: the version of the code that trained it.
        step: of the checkpoint that it is.
        evaluation: the folder of its evaluation.
    """

    student: Folder
    student_sha256: str
    recipe: str
    teacher: str
    teacher_sha256: str
    prompts: Mapping[str, Any]
    mlflow_run: str
    code: str
    step: int
    evaluation: Folder

    @staticmethod
    def of_run(distilled: Folder, evaluated: Folder) -> "Candidate":
        """Return the student of a finished run, from the manifests of its two folders."""
        record = manifest.read(distilled, "distill")
        manifest.read(evaluated, "evaluate")
        return Candidate(
            student=distilled / "student",
            student_sha256=record["student_sha256"],
            recipe=record["recipe"],
            teacher=record["teacher"],
            teacher_sha256=record["teacher_sha256"],
            prompts=record["prompts"],
            mlflow_run=record["mlflow_run"],
            code=record["code"],
            step=record["metrics"]["step"],
            evaluation=evaluated,
        )

    @property
    def place(self) -> str:
        """Below the run's artifacts; another for each student of the run."""
        return f"versions/{self.step}-{self.student_sha256[:SHORT]}"

    @property
    def data_sha256(self) -> str:
        """The SHA-256 of the prepared prompts, over the canonical JSON of their files' hashes."""
        return hashlib.sha256(json.dumps(self.prompts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
