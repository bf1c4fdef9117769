"""Export of a checkpoint's student to a diffusers folder, which needs neither Ray nor DeepSpeed."""

import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from nasa.lora import collect_adapters, merge_weights
from pipeline import models
from pipeline.hashing import hash_folder
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from pipeline.training.engines import add_student_lora


def export(recipe: Recipe, teacher: Path, init: str, weights: Path, folder: Folder) -> str:
    """Write the student whose trained weights are in this file; returns its folder's hash.

    `init` is the folder of the denoiser that it started from, or empty for the teacher's. A LoRA student's adapters
    are merged, and lie beside the pipeline as a LoRA of that denoiser.
    """
    denoiser = _load_trained(recipe, Path(init or teacher), load_file(weights))
    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch) / "student"
        sha256 = models.save_student(teacher, merge_weights(denoiser), exported, **models.get_student_options(recipe))
        if adapters := collect_adapters(denoiser):
            models.save_lora(exported, models.detect_family(teacher).denoiser_part, adapters)
            sha256 = hash_folder(exported)
        folder.upload(exported)
    return sha256


def collect_full_weights(recipe: Recipe, base: Path, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return all weights of a student, the trained ones included, with adapters merged."""
    return merge_weights(_load_trained(recipe, base, trained))


def _load_trained(recipe: Recipe, base: Path, trained: dict[str, Tensor]) -> Any:
    """Return the denoiser of `base` with the trained weights, or with the trained adapters."""
    model = models.load_denoiser(base)
    add_student_lora(recipe, model)
    model.load_state_dict(trained, strict=False)
    return model
