"""Export of a checkpoint's student to a diffusers folder, which needs neither Ray nor DeepSpeed."""

import tempfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from nasa.lora import merge_weights
from pipeline import models
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from pipeline.training.engines import add_student_lora


def export(recipe: Recipe, teacher: Path, init: str, weights: Path, folder: Folder) -> str:
    """Write the student whose trained weights are in this file; returns its folder's hash.

    `init` is the folder of the denoiser that it started from, or empty for the teacher's.
    """
    weights_by_name = collect_full_weights(recipe, Path(init or teacher), load_file(weights))
    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch) / "student"
        sha256 = models.save_student(teacher, weights_by_name, exported, **models.get_student_options(recipe))
        folder.upload(exported)
    return sha256


def collect_full_weights(recipe: Recipe, base: Path, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return all weights of a student, the trained ones included, with adapters merged."""
    model = models.load_denoiser(base)
    add_student_lora(recipe, model)
    model.load_state_dict(trained, strict=False)
    return merge_weights(model)
