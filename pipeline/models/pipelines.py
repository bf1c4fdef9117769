"""Teachers and students as folders in diffusers' layout, of Stable Diffusion and PixArt."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from nasa.diffusion_process import DiffusionProcess, read_diffusion
from nasa.families import Family, find_distillable_family, find_family, list_distillable_pipelines
from nasa.prompt_embeds import PromptEmbeds, cat
from nasa.steerable_denoiser import require_distillation
from pipeline.errors import UserError, invalid
from pipeline.hashing import hash_folder
from pipeline.model_download import download_folder
from pipeline.recipe import BUNDLED
from pipeline.shapes import WEIGHTS

_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
STUDENT_FILE = "student.json"
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")  # a student neither needs nor keeps them


@dataclass(frozen=True)
class TextToImage:
    """A text-to-image pipeline whose parts are frozen, float32, in evaluation mode.

    Without a text encoder it only knows the texts of `cached_embeds`.
    """

    folder: Path
    pipe: Any
    diffusion: DiffusionProcess
    cached_embeds: Mapping[str, PromptEmbeds] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The pipeline's model family."""
        return find_family(self.pipe)[0]

    @property
    def denoiser(self) -> Any:
        """The part that is distilled."""
        return find_family(self.pipe)[1]

    def list_modules(self) -> list[torch.nn.Module]:
        """Return denoiser, text encoder and autoencoder."""
        return [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.pipe.vae

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents."""
        side = int(self.denoiser.config.sample_size)
        return int(self.denoiser.config.in_channels), side, side

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Encode prompts by the pipeline's own encoder."""
        if self.cached_embeds:
            return cat([self.cached_embeds[prompt] for prompt in prompts])
        return self.family.encode(self.pipe, prompts, None)


def find_teacher_folder(teacher: str, field: str = "teacher", revision: str = "main") -> Path:
    """Return the folder of a recipe's model, after checking that its pipeline can be distilled."""
    folder = WEIGHTS / "teacher" if teacher == BUNDLED else download_folder(teacher, field, revision)
    index = folder / "model_index.json"
    if not index.is_file() and teacher == BUNDLED:
        raise UserError(f"{field}: the bundled teacher is not in {WEIGHTS}; make it with `python -m jobs train-shapes`")
    if not index.is_file():
        raise invalid(field, teacher, f'a folder or hub id with a model_index.json, or "{BUNDLED}"')
    try:
        parts = json.loads(index.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{field}: {index} is not valid JSON: {error}") from error
    family = find_distillable_family(str(parts.get("_class_name")))
    if family is None:
        expected = f"a folder of {' or '.join(list_distillable_pipelines())}"
        raise UserError(f"{field}: got {teacher!r}, which is a {parts.get('_class_name')}; expected {expected}.")
    missing = [part for part in (family.denoiser_part, *_PARTS) if part not in parts or not (folder / part).is_dir()]
    if missing:
        raise invalid(field, teacher, f"a complete pipeline; {', '.join(missing)} is missing")
    return folder


def local_or_download(folder: str, path_or_id: str, field: str = "teacher", revision: str = "main") -> Path:
    """Return the driver's local `folder` if this node has it too, else download `path_or_id`."""
    on_this_node = (Path(folder) / "model_index.json").is_file()
    return Path(folder) if on_this_node else find_teacher_folder(path_or_id, field, revision)


@dataclass(frozen=True)
class TextEncoder:
    """The part of a pipeline that encodes texts, frozen."""

    pipe: Any
    family: Family

    def to(self, dtype: torch.dtype) -> None:
        """Convert the text encoder's dtype."""
        self.pipe.text_encoder.to(dtype)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Encode prompts."""
        return self.family.encode(self.pipe, prompts, None)


def load_text_encoder(folder: Path, device: torch.device | str = "cpu") -> TextEncoder:
    """Load only the text encoder and the tokenizer of a pipeline's folder."""
    family = detect_family(folder)
    try:
        pipe = load_pipeline(folder, **{family.denoiser_part: None, "vae": None})
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"teacher: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    pipe.text_encoder.requires_grad_(False).eval().to(device)
    return TextEncoder(pipe, family)


def load(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    start_timestep: int = -1,
    cached_embeds: Mapping[str, PromptEmbeds] | None = None,
) -> TextToImage:
    """Load the pipeline of a folder; with `cached_embeds` its text encoder is left out."""
    try:
        pipe = load_pipeline(folder, **({"text_encoder": None} if cached_embeds else {}))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"teacher: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    try:
        diffusion = read_diffusion(pipe, device, start_timestep=start_timestep)
    except ValueError as error:
        field = "teacher." if str(error).startswith("scheduler") else "method."
        raise UserError(f"{field}{error}") from None
    model = TextToImage(folder, pipe, diffusion, cached_embeds or {})
    for part in model.list_modules():
        part.requires_grad_(False).eval().to(device)
    return model


def load_pipeline(folder: Path, **parts: None) -> Any:
    """Load a pipeline in float32, without `UNUSED_PARTS` and without the `parts` that are None."""
    listed = json.loads((folder / "model_index.json").read_text())
    parts |= dict.fromkeys((part for part in UNUSED_PARTS if part in listed), None)
    with _silence_libraries():
        pipe = DiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, **parts
        )
    if pipe.config.get("requires_safety_checker"):
        pipe.register_to_config(requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _silence_libraries() -> Iterator[None]:
    """Hide progress bars and diffusers' warning of a missing safety checker, which the model card mentions."""
    level = diffusers_logging.get_verbosity()
    with_bars = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    diffusers_logging.set_verbosity_error()
    for log in with_bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        for log in with_bars:
            log.enable_progress_bar()


def detect_family(folder: Path) -> Family:
    """Return the family of a pipeline's folder that can be distilled."""
    family = find_distillable_family(json.loads((folder / "model_index.json").read_text())["_class_name"])
    assert family is not None
    return family


def load_denoiser(folder: Path, field: str = "student.init") -> Any:
    """Load the denoiser of a pipeline's folder, in float32."""
    family = detect_family(folder)
    try:
        return getattr(diffusers, family.denoiser_class).from_pretrained(
            folder / family.denoiser_part, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{field}: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def save_student(teacher: Path, weights: dict[str, Tensor], target: Path, *, start_timestep: int = -1) -> str:
    """Write the student as a diffusers folder that generates in one step; returns the folder's hash.

    Its scheduler starts a single step at t = T - 1 and returns the denoised latents:
    `pipe(prompt, num_inference_steps=1, guidance_scale=0)`; with another start timestep, pass `timesteps=[start]` too.
    """
    distillation = require_distillation(detect_family(teacher))
    scheduler = distillation.one_step_scheduler if start_timestep == -1 else distillation.early_start_scheduler
    return save_denoiser(teacher, weights, target, scheduler, {"start_timestep": start_timestep})


def save_denoiser(
    folder: Path,
    weights: dict[str, Tensor],
    target: Path,
    scheduler: Any = None,
    record: Mapping[str, Any] | None = None,
) -> str:
    """Write a pipeline's folder with other weights of its denoiser; return the new folder's hash.

    `record` has what diffusers' own files lack; by default it is copied from `folder`.
    """
    pipe = load_pipeline(folder)
    getattr(pipe, detect_family(folder).denoiser_part).load_state_dict(weights)
    if scheduler:
        pipe.scheduler = scheduler(pipe.scheduler.config)
    with _silence_libraries():
        pipe.save_pretrained(target)
    if held := read_student_record(folder) if record is None else record:
        (target / STUDENT_FILE).write_text(json.dumps(dict(held), indent=2) + "\n")
    return hash_folder(target)


def read_student_record(folder: Path) -> dict[str, Any]:
    """Return what `save_student` wrote beside diffusers' own files; empty for any other folder."""
    file = folder / STUDENT_FILE
    return dict(json.loads(file.read_text())) if file.is_file() else {}
