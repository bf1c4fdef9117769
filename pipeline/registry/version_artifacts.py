"""The artifacts of a version: one folder with the student, its evaluation, recipe, model card and MLflow's files."""

import logging
import shutil
import warnings
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType

import nasa
from pipeline import models
from pipeline.errors import UserError
from pipeline.hashing import hash_folder
from pipeline.recipe import dump
from pipeline.registry import model_card
from pipeline.registry.candidate import Candidate
from pipeline.registry.lora_use import add_diffusers_flavor, describe_lora
from pipeline.registry.student_scores import FILES, Scores

STUDENT, EVALUATION, DECISION = "student", "evaluation", "promotion.json"
CODE = Path(__file__).parent / "pyfunc_model.py"
REQUIREMENTS = ("mlflow", "torch", "diffusers", "transformers", "peft", "pandas")
EXAMPLE = {"prompt": "a photo of a red circle", "negative_prompt": "blurry", "seed": 0, "scale": 0.5}
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec("string", "prompt"),
            ColSpec(AnyType(), "negative_prompt", required=False),  # an empty CSV column is read as numbers
            ColSpec(AnyType(), "seed", required=False),  # MLflow accepts no missing value in a "long" column
            ColSpec(AnyType(), "scale", required=False),  # "double" columns accept no integer
        ]
    ),
    outputs=Schema([ColSpec("binary")]),
)
EPOCH = "1970-01-01 00:00:00"  # fixed, so that MLflow's file is reproducible
SCALE = 0.5  # the default alpha if the evaluation chose none


def build_artifacts(candidate: Candidate, scores: Scores, name: str, scratch: Path) -> Path:
    """Write the folder and return it; the student is checked to be the one that was evaluated."""
    student = candidate.student.copy_to_local(scratch / "copy")
    if hash_folder(student) != candidate.student_sha256:
        raise UserError(f"{candidate.student.uri}: is not the student of its manifest. Distil or export it again.")
    folder = scratch / "version"
    _save_model(candidate, scores, student, folder)
    shutil.copytree(student, folder / STUDENT)
    (folder / EVALUATION).mkdir()
    for file in FILES:
        if candidate.evaluation.exists(file):
            (folder / EVALUATION / file).write_bytes(candidate.evaluation.read(file))
    (folder / "recipe.toml").write_text(dump(candidate.recipe), encoding="utf-8")
    lora = describe_lora(candidate.recipe, student)
    page = model_card.render(candidate, scores, name, models.build_call_options(student), lora)
    (folder / "README.md").write_text(page, encoding="utf-8")
    return folder


def _save_model(candidate: Candidate, scores: Scores, student: Path, folder: Path) -> None:
    """Write MLflow's files: `MLmodel`, the code that generates, `nasa` and the requirements. Nothing is pickled."""
    model = Model(run_id=candidate.mlflow_run, utc_time_created=EPOCH, model_uuid=_derive_uuid(candidate))
    if lora := describe_lora(candidate.recipe, student):
        add_diffusers_flavor(model, lora, STUDENT)
    quiet = logging.getLogger("mlflow.pyfunc")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it suggests type hints, which a table with optional columns cannot have
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(CODE),
                code_paths=[str(Path(nasa.__file__).parent)],
                signature=SIGNATURE,
                input_example=pd.DataFrame([EXAMPLE]),
                pip_requirements=list_pip_requirements(),
                model_config={
                    "options": models.build_call_options(student),
                    "scale": SCALE if scores.chosen_scale is None else scores.chosen_scale,
                },
                mlflow_model=model,
            )
    finally:
        quiet.setLevel(level)


def _derive_uuid(candidate: Candidate) -> str:
    """Return a UUID derived from the student, so that every writer of a version writes the same files."""
    return candidate.student_sha256[:32]


def list_pip_requirements() -> list[str]:
    """Return installed versions, without the local part of a build such as `+cpu`."""
    from importlib.metadata import version

    return [f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS]
