"""The use of a LoRA student's adapter without the merged pipeline: for the model card, and as MLflow's own flavor."""

import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
from mlflow.models import Model

from pipeline import ROOT, models
from pipeline.model_download import is_hub_id
from pipeline.recipe import BUNDLED, Recipe
from pipeline.shapes import WEIGHTS


@dataclass(frozen=True)
class LoraUse:
    """The pipeline that an adapter is loaded into, and the way to do it.

    Attributes:
        base: folder, s3:// or hub id of the pipeline that the adapter changes.
        revision: the revision on the hub; empty for the default.
        scheduler: class of the student's scheduler in diffusers.
        comfyui_file: name of the file for ComfyUI beside the adapter's, if it needs one of its own; empty if not.
        has_loader: whether diffusers loads adapters into this pipeline; it has no loader for PixArt's.
    """

    base: str
    revision: str
    scheduler: str
    comfyui_file: str
    has_loader: bool


def describe_lora(recipe: Recipe, student: Path) -> LoraUse | None:
    """Return the use of a student's adapter, or None if it has none."""
    if not (student / models.LORA_FILE).is_file():
        return None
    index = json.loads((student / "model_index.json").read_text())
    base = recipe.student.init or recipe.teacher
    pinned = not recipe.student.init and is_hub_id(base) and recipe.revision != "main"
    return LoraUse(
        base=(WEIGHTS / "teacher").relative_to(ROOT).as_posix() if base == BUNDLED else base,
        revision=recipe.revision if pinned else "",
        scheduler=index["scheduler"][1],
        comfyui_file=models.COMFYUI_FILE if (student / models.COMFYUI_FILE).is_file() else "",
        has_loader=hasattr(getattr(diffusers, index["_class_name"]), "load_lora_weights"),
    )


def add_diffusers_flavor(model: Model, lora: LoraUse, folder: str) -> None:
    """Let `mlflow.diffusers.load_model` find the adapter in a version's folder, if diffusers can load it."""
    if lora.has_loader:
        revision = {"base_model_revision": lora.revision} if lora.revision else {}
        model.add_flavor(
            "diffusers",
            base_model=lora.base,
            adapter_type="lora",
            adapter_weights=folder,
            weight_name=models.LORA_FILE,
            diffusers_version=diffusers.__version__,
            **revision,
        )
