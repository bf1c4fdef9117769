"""The MLflow run of a training: one for a folder, with its recipe as parameters and its prompts as datasets."""

from pathlib import Path

from pipeline import manifest, tracking
from pipeline.evaluation.datasets import list_training_datasets
from pipeline.hashing import hash_folder
from pipeline.prompts.prompt_dataset import PromptsManifest
from pipeline.recipe import Recipe
from pipeline.recipe.params import format_note, format_params, format_run_name
from pipeline.redaction import redact
from pipeline.storage import Folder
from pipeline.training import run_identity


def resume_or_create_mlflow_run(
    recipe: Recipe, prompts: PromptsManifest, teacher: Path, folder: Folder, tracking_uri: str
) -> str:
    """Return the MLflow run of this folder: the one it began with, or a new one."""
    sha256 = hash_folder(teacher)
    if folder.exists(manifest.RUN_FILE):
        begun, state = run_identity.read_begun_run(folder), run_identity.BEGUN
        run_identity.require_same_run(folder, begun.recipe, recipe, state)
        run_identity.require_same_prompts(folder, begun.prompts, prompts.files, state)
        run_identity.require_same_teacher(folder, begun.teacher_sha256, sha256, recipe.teacher)
        return begun.mlflow_run
    tags = {"folder": redact(folder.uri), "code": manifest.get_code_version()}
    params, note = format_params(recipe), format_note(recipe)
    mlflow_run = tracking.create_run(tracking_uri, format_run_name(recipe), params, note, tags)
    begun = run_identity.BegunRun(mlflow_run=mlflow_run, recipe=recipe, prompts=prompts.files, teacher_sha256=sha256)
    folder.write_json(manifest.RUN_FILE, begun.to_dict())
    return mlflow_run


def log_datasets(prompts: PromptsManifest, prompt_folder: Folder, tracking_uri: str, mlflow_run: str) -> None:
    """Log the prompts and negative prompts as inputs of the run, without waiting for MLflow."""
    inputs = [dataset.to_input() for dataset in list_training_datasets(prompt_folder, prompts)]
    tracking.Tracker(tracking_uri, mlflow_run).log_datasets(inputs)
