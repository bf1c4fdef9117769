"""The identity of a run: a folder is reused only for the same recipe, prompts and teacher."""

import reprlib
from collections.abc import Mapping

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.manifest import DataFile
from pipeline.recipe import Evaluation, Notify, Promotion, Prompts, Recipe, Retention, Schedule, Train
from pipeline.recipe.params import flatten
from pipeline.storage import Folder
from pipeline.strict_model import StrictModel

BEGUN, FINISHED = "a run", "a finished student"
_FURTHER = "; to train its student further, start another --run with --set student.init={}/student"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
PLACEMENT = (  # fields of `train` that do not change what a run learns
    *("num_workers", "min_workers", "micro_batch_size", "cpus_per_worker", "gpus_per_worker", "gpu", "zero_stage"),
    *(
        "offload_optimizer",
        "offload_parameters",
        "overlap_comm",
        "resource_timeout_minutes",
        "gradient_checkpointing",
        "compile",
        "checkpoint_every_n_steps",
        "num_to_keep",
        "max_failures",
    ),
    *("num_encoders", "cpus_per_encoder", "gpus_per_encoder"),
    *("on_divergence", "max_rollbacks", "max_grad_norm_ratio", "min_image_std_ratio"),
)


class BegunRun(StrictModel):
    """`run.json`: the inputs of a distillation that was begun, and its MLflow run."""

    recipe: Recipe
    prompts: dict[str, DataFile]
    teacher_sha256: str
    mlflow_run: str


def read_begun_run(folder: Folder) -> BegunRun:
    """Return the record of the run that a folder was begun with."""
    return BegunRun.from_values(folder.read_json(manifest.RUN_FILE), f"{folder.uri}/{manifest.RUN_FILE}")


def require_same_run(folder: Folder, saved_recipe: Recipe, recipe: Recipe, state: str) -> None:
    """Reject a recipe that would train something else; `state` says what the folder holds.

    Raises:
        UserError: naming the first field that differs, both values, and what to do.
    """
    saved, given = (flatten(_reset_placement_fields(each, state).to_dict()) for each in (saved_recipe, recipe))
    for name, value in sorted(given.items(), key=lambda item: item[0] == "name"):  # the name follows from the rest
        if saved.get(name) != value:
            further = _FURTHER.format(folder.uri) if state == FINISHED else ""
            raise UserError(
                f"{name}: got {_SHORT.repr(value)}; expected {_SHORT.repr(saved.get(name))}, as in {folder.uri}, which "
                f"holds {state}. Pass the same value, or another --run{further}."
            )


def require_same_prompts(
    folder: Folder, saved: Mapping[str, DataFile], prompts: Mapping[str, DataFile], state: str
) -> None:
    """Reject prompts that differ from those of the run.

    Raises:
        UserError: naming the folder.
    """
    if saved != prompts:
        raise UserError(
            f"prompts: got other prompts; expected those that {state} in {folder.uri} was begun with. Prepare the same "
            "ones, or pass another --run."
        )


def require_same_teacher(folder: Folder, saved_sha256: str, sha256: str, teacher: str) -> None:
    """Reject a teacher whose files differ from those of the run.

    Raises:
        UserError: naming the teacher.
    """
    if saved_sha256 != sha256:
        raise UserError(
            f"teacher: got {teacher!r} with sha256 {sha256[:12]}; expected {saved_sha256[:12]}, as in {folder.uri}. "
            "Pass the same teacher, or another --run."
        )


def _reset_placement_fields(recipe: Recipe, state: str) -> Recipe:
    """Return the recipe with every field that does not change what the student learns set to its default.

    For a finished run, the fields that selected the student's checkpoint count too.
    """
    chose = recipe if state == FINISHED and recipe.evaluation.student_selection == "best" else Recipe()
    placement = {name: Train.model_fields[name].default for name in PLACEMENT}
    prompts = Prompts(avoid_contradictions=recipe.prompts.avoid_contradictions)  # others are compared by their files
    samples_pairs = recipe.regression.weight > 0 and not recipe.regression.pairs
    precision = recipe.evaluation.precision if samples_pairs else Evaluation().precision
    promotion = Promotion(metric=chose.promotion.metric, higher_is_better=chose.promotion.higher_is_better)
    return recipe.model_copy(
        update={
            "prompts": prompts,
            "train": recipe.train.model_copy(update=placement),
            "evaluation": Evaluation(student_selection=chose.evaluation.student_selection, precision=precision),
            "promotion": promotion,
            "schedule": Schedule(),
            "retention": Retention(),
            "notify": Notify(),
        }
    )
