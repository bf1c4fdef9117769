"""A student that may be registered, with its lineage."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline import manifest
from pipeline.evaluation.evaluate import EvaluationManifest
from pipeline.hashing import hash_json
from pipeline.logged_models import TrainedStudent
from pipeline.manifest import DataFile, DistilledManifest
from pipeline.recipe import Recipe
from pipeline.storage import Folder

SHORT = 12  # characters of a hash that people read


@dataclass(frozen=True)
class Candidate:
    """A student and its lineage, as plain data.

    Attributes:
        student: its diffusers folder, local or s3://.
        student_sha256: that folder's hash (`hashing.hash_folder`).
        recipe: the resolved recipe.
        teacher_sha256: its folder's hash.
        prompts: the prepared prompts' files with their hashes, of the manifest of `prepare`.
        mlflow_run: the training run.
        code: the version of the code that trained it.
        step: the step of its checkpoint.
        evaluation: the folder of its evaluation.
    """

    student: Folder
    student_sha256: str
    recipe: Recipe
    teacher_sha256: str
    prompts: Mapping[str, DataFile]
    mlflow_run: str
    code: str
    step: int
    evaluation: Folder

    @staticmethod
    def from_run(distilled: Folder, evaluated: Folder) -> "Candidate":
        """Return the student of a finished run, from the manifests of its two folders."""
        manifest.read(evaluated, EvaluationManifest)
        run = manifest.read(distilled, DistilledManifest)
        return Candidate(
            student=distilled / "student",
            student_sha256=run.student_sha256,
            recipe=run.recipe,
            teacher_sha256=run.teacher_sha256,
            prompts=run.prompts,
            mlflow_run=run.mlflow_run,
            code=run.code,
            step=run.step,
            evaluation=evaluated,
        )

    @property
    def trained(self) -> TrainedStudent:
        """The student as MLflow's logged model knows it."""
        return TrainedStudent(self.mlflow_run, self.step, self.student_sha256, self.recipe)

    @property
    def artifact_path(self) -> str:
        """The path below the run's artifacts, which differs between the students of a run."""
        return f"versions/{self.step}-{self.student_sha256[:SHORT]}"

    @property
    def data_sha256(self) -> str:
        """The SHA-256 of the prepared prompts, over the canonical JSON of their files' hashes."""
        return hash_json({name: file.to_dict() for name, file in self.prompts.items()})
