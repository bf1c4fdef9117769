"""MLflow's logged models: one for each evaluated student of a training run, with its recipe, scores and dataset.

A logged model holds no files: the weights are in the run's folder, and in the registered version once there is one. Its
parameters are what its recipe changes, as MLflow's Models tab has a column for each; the run has all of them.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.tracking import MlflowClient

from pipeline.hashing import hash_bytes
from pipeline.recipe import Recipe, dump
from pipeline.recipe.params import list_changes

STUDENT, RECIPE = "student_sha256", "recipe_sha256"  # tags
STEP = "step"  # a tag, a parameter, and a metric, which a search compares as a number
VERSIONS = "mlflow.modelVersions"  # the tag that MLflow's Models tab reads
DIGEST = 12  # characters of a dataset's digest
MODEL_TYPE = "student"


@dataclass(frozen=True)
class TrainedStudent:
    """A student of a training run: the weights of one step, and the recipe that trained them."""

    mlflow_run: str
    step: int
    student_sha256: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of its logged model; MLflow allows no dots there."""
        return f"{self.recipe.name}-step-{self.step}".replace(".", "-")


def find(client: MlflowClient, student: TrainedStudent) -> LoggedModel | None:
    """Return the student's logged model, the oldest one, or None."""
    experiment = client.get_run(student.mlflow_run).info.experiment_id
    matching: Sequence[LoggedModel] = client.search_logged_models(
        [experiment],
        filter_string=f"source_run_id = '{student.mlflow_run}' AND tags.{STUDENT} = '{student.student_sha256}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
    )
    return next((model for model in matching if model.tags.get(STEP) == str(student.step)), None)


def ensure(client: MlflowClient, student: TrainedStudent) -> str:
    """Return the id of the student's logged model, which is created if there is none; completes an interrupted call.

    If two processes race, the older one stays.
    """
    model = find(client, student)
    if model is None:
        created = _create(client, student)
        model = find(client, student) or created
        if model.model_id != created.model_id:
            client.delete_logged_model(created.model_id)
    if model.status != LoggedModelStatus.READY:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = client.get_run(student.mlflow_run).outputs
    if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        client.log_outputs(student.mlflow_run, [LoggedModelOutput(model.model_id, student.step)])
    return str(model.model_id)


def _create(client: MlflowClient, student: TrainedStudent) -> LoggedModel:
    return client.create_logged_model(
        client.get_run(student.mlflow_run).info.experiment_id,
        name=student.name,
        source_run_id=student.mlflow_run,
        tags={
            STEP: str(student.step),
            STUDENT: student.student_sha256,
            RECIPE: hash_bytes(dump(student.recipe).encode()),
        },
        params={STEP: str(student.step), "recipe": student.recipe.name, **list_changes(student.recipe)},
        model_type=MODEL_TYPE,
    )


def log_scores(
    client: MlflowClient, student: TrainedStudent, scores: Mapping[str, float], dataset_name: str, dataset_digest: str
) -> None:
    """Log a student's scores on a dataset to its logged model and its run, except those that are logged already."""
    model_id = ensure(client, student)
    logged = sorted(client.get_logged_model(model_id).metrics or [], key=lambda metric: metric.timestamp)
    known = {(metric.key, metric.dataset_digest): metric.value for metric in logged}
    now = int(time.time() * 1000)
    entries = [
        Metric(name, value, now, student.step, model_id, dataset_name, dataset_digest, student.mlflow_run)
        for name, value in {**scores, STEP: float(student.step)}.items()
        if known.get((name, dataset_digest)) != value
    ]
    if entries:
        client.log_batch(student.mlflow_run, metrics=entries)


def link_version(client: MlflowClient, model_id: str, name: str, version: str) -> None:
    """Add a registered version to those that MLflow shows beside a logged model.

    `create_model_version(model_id=...)` would do it, but a server accepts only files of the logged model there, and a
    version's files are the run's.
    """
    entry = {"name": name, "version": int(version)}
    linked = json.loads(client.get_logged_model(model_id).tags.get(VERSIONS, "[]"))
    if entry not in linked:
        client.set_logged_model_tags(model_id, {VERSIONS: json.dumps([*linked, entry])})
