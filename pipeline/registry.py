"""Registering a student in MLflow as a model version that can be compared, loaded and rolled back."""

import json
import tempfile
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline import manifest, tracking
from pipeline.evaluation.evaluate import flat_metrics
from pipeline.recipe import parse
from pipeline.storage import Folder

CHAMPION, CHALLENGER = "champion", "challenger"
METRIC = "eval_clean_and_right"
STUDENT_TAG = "student_sha256"


def register(distilled: Folder, evaluated: Folder, folder: Folder, tracking_uri: str) -> dict[str, Any]:
    """Register the student, once for one set of weights; returns name, version, alias and score.

    The version points to a diffusers folder among the run's artifacts. It becomes `champion` if its share of
    clean images with every attribute right is above the present champion's, else `challenger`.
    """
    record = manifest.read(distilled, "distill")
    manifest.read(evaluated, "evaluate")
    summary = json.loads(evaluated.read("summary.json"))
    recipe = parse(record["recipe"])
    tracking.require_run(tracking_uri, record["mlflow_run"])
    client = tracking.client(tracking_uri)
    name = f"nasa-{recipe.name}"
    _ensure_model(client, name)
    version = _existing(client, name, record["student_sha256"])
    if version is None:
        version = _create(client, name, record, distilled, evaluated, flat_metrics(summary))
    alias = _promote(client, name, version, flat_metrics(summary).get(METRIC))
    outcome = {"model": name, "version": int(version), "alias": alias, "uri": f"models:/{name}/{version}"}
    manifest.write(
        folder, "register", student_sha256=record["student_sha256"], mlflow_run=record["mlflow_run"], **outcome
    )
    return outcome


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="One-step students distilled with NASA-T.")


def _existing(client: MlflowClient, name: str, student_sha256: str) -> str | None:
    versions = client.search_model_versions(f"name = '{name}'")
    same = [v.version for v in versions if v.tags.get(STUDENT_TAG) == student_sha256]
    return str(min(same, key=int)) if same else None


def _create(
    client: MlflowClient,
    name: str,
    record: dict[str, Any],
    distilled: Folder,
    evaluated: Folder,
    scores: dict[str, float],
) -> str:
    run_id = record["mlflow_run"]
    with tempfile.TemporaryDirectory() as scratch:
        student = (distilled / "student").local_copy(Path(scratch) / "student")
        client.log_artifacts(run_id, str(student), "student")
        for file in ("contact_sheet.png", "report.html"):
            copy = Path(scratch) / file
            copy.write_bytes(evaluated.read(file))
            client.log_artifact(run_id, str(copy), "evaluation")
        recipe_file = Path(scratch) / "recipe.toml"
        recipe_file.write_text(record["recipe"])
        client.log_artifact(run_id, str(recipe_file))
    tags = {key: f"{value:.4f}" for key, value in scores.items()}
    tags |= {STUDENT_TAG: record["student_sha256"], "teacher_sha256": record["teacher_sha256"], "code": record["code"]}
    source = f"{client.get_run(run_id).info.artifact_uri}/student"
    created = client.create_model_version(name, source=source, run_id=run_id, tags=tags)
    return str(created.version)


def _promote(client: MlflowClient, name: str, version: str, score: float | None) -> str:
    """Give the version its alias; a version that already is champion stays so."""
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        champion = None
    best = -1.0 if champion is None else float(champion.tags.get(METRIC, -1.0))
    is_champion = champion is None or str(champion.version) == version or (score is not None and round(score, 4) > best)
    alias = CHAMPION if is_champion else CHALLENGER
    client.set_registered_model_alias(name, alias, version)
    return alias
