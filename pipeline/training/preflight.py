"""Checks that the driver of a distillation makes before it starts Ray."""

import uuid
from pathlib import Path

import torch
from torch import nn

from pipeline import models
from pipeline.errors import UserError, invalid
from pipeline.evaluation import evaluate
from pipeline.models.clip.loss_model import find_clip_folder, find_decoder_folder
from pipeline.prompts import prompt_dataset
from pipeline.prompts.preparation_request import TRAINING_ONLY
from pipeline.prompts.prompt_dataset import PromptsManifest
from pipeline.prompts.teacher_pairs import TeacherPairs, open_pairs_folder
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from pipeline.training.engines import choose_lora_targets
from pipeline.training.memory_advice import require_fit


def check(recipe: Recipe, prompt_folder: Folder, folder: Folder) -> tuple[PromptsManifest, Path, Path | None]:
    """Check all inputs; return the prompts' manifest, and the folders of the teacher and of the student's start.

    Raises:
        UserError: naming the field or the folder.
    """
    require_fit(recipe)
    prepared = prompt_dataset.load_manifest(prompt_folder)
    _check_prompts(recipe, prepared)
    teacher = models.find_teacher_folder(recipe.teacher, revision=recipe.revision)
    init = models.find_teacher_folder(recipe.student.init, "student.init") if recipe.student.init else None
    _check_models(recipe, teacher, init)
    if recipe.train.clip_weight:
        find_clip_folder(recipe.train.clip_model)
        if recipe.train.clip_decoder:
            find_decoder_folder(recipe.train.clip_decoder)
    _check_pairs(recipe, teacher)
    if recipe.evaluation.every_n_checkpoints:
        evaluate.check_inputs(recipe, prompt_folder)
    check_storage(folder)
    return prepared, teacher, init


def check_storage(folder: Folder) -> None:
    """Write a small file, read it back, remove it.

    Raises:
        UserError: naming the folder and what failed.
    """
    name, content = f".probe-{uuid.uuid4().hex}", b"probe"
    folder.write(name, content)
    if folder.read(name) != content:
        raise UserError(f"{folder.uri}: what is written cannot be read back")
    folder.remove(name)


def _check_prompts(recipe: Recipe, prepared: PromptsManifest) -> None:
    """Check that the prompts were prepared with the recipe's settings."""
    given = prepared.recipe.prompts.to_dict()
    for name, value in recipe.prompts.to_dict().items():
        if name not in TRAINING_ONLY and given.get(name) != value:
            raise invalid(
                f"prompts.{name}",
                value,
                f"{given.get(name)!r}, which `prepare` was given",
                "Give both the same, or prepare another --run.",
            )


def _check_pairs(recipe: Recipe, teacher: Path) -> None:
    """Check that the regression's pairs, if they are given, are as many as asked for and of the teacher's shape."""
    options = recipe.regression
    if not options.weight or not options.pairs:
        return
    pairs = TeacherPairs.read(open_pairs_folder(options.pairs), options.num_pairs)
    got, expected = tuple(pairs.latents.shape[1:]), models.load_for_recipe(recipe, teacher).latent_shape
    if got != expected:
        raise invalid("regression.pairs", options.pairs, f"pairs of latents {list(expected)}; these are {list(got)}")


def _check_models(recipe: Recipe, teacher: Path, init: Path | None) -> None:
    """Check that the models load, have the adapters' target modules, and match in shape."""
    model = models.load_for_recipe(recipe, teacher)
    denoiser = model.denoiser
    layers = [name for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for field, targets in (
        ("lora_teacher.target_modules", choose_lora_targets(recipe, model.family)),
        ("student.lora_target_modules", recipe.student.lora_target_modules if recipe.student.lora_rank else ()),
    ):
        for target in targets:
            if not any(name.endswith(f".{target}") for name in layers):
                raise invalid(field, target, "the end of a layer's name in the teacher, such as to_q or to_out.0")
    if init is not None and _collect_shapes(models.load_denoiser(init)) != _collect_shapes(denoiser):
        raise invalid("student.init", recipe.student.init, "a denoiser of the teacher's architecture")


def _collect_shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}
