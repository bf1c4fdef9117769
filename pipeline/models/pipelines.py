"""Teachers and students as folders in diffusers' layout."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from nasa.diffusion_process import DiffusionProcess, read_diffusion
from nasa.families import Family, find_distillable_family, find_family, list_distillable_pipelines
from nasa.mixed_precision import cast_frozen
from nasa.prompt_embeds import PromptEmbeds, cat
from nasa.schedulers import is_flow_matching
from nasa.steerable_denoiser import get_output_layer, require_distillation
from pipeline.errors import UserError, invalid
from pipeline.hashing import hash_folder
from pipeline.model_download import download_folder
from pipeline.recipe import BUNDLED, Recipe
from pipeline.shapes import WEIGHTS

_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
STUDENT_FILE = "student.json"
STEP_OPTIONS = ("start_timestep", "student_steps")  # the other entries of the file are options of the call
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")  # a student neither needs nor keeps them


@dataclass(frozen=True)
class TextToImage:
    """A text-to-image pipeline whose parts are frozen and in evaluation mode.

    All parts are float32. With another `compute_dtype` the text encoders have that dtype, and so has the denoiser
    except for its output layer. Without a text encoder the model only knows the texts of `cached_embeds`. `resolution`
    is the images' width and height in pixels; 0 is the model's own size.
    """

    folder: Path
    pipe: Any
    diffusion: DiffusionProcess
    cached_embeds: Mapping[str, PromptEmbeds] = field(default_factory=dict)
    resolution: int = 0
    compute_dtype: torch.dtype = torch.float32

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
    def latent_shape(self) -> tuple[int, ...]:
        """One image's latents: channels, height and width, with the number of frames before the height of a video."""
        return get_latent_shape(self.pipe, self.resolution)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images [B, 3, H, W] in about -1..1; of a video's frames, the middle one."""
        images = require_distillation(self.family).decode(self.vae, latents)
        return images if images.ndim == 4 else images[:, :, images.shape[2] // 2]

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> PromptEmbeds:
        """Encode prompts by the pipeline's own encoder."""
        if self.cached_embeds:
            return cat([self.cached_embeds[prompt] for prompt in prompts])
        return self.family.encode(self.pipe, prompts, None)


def get_latent_shape(pipe: Any, resolution: int) -> tuple[int, ...]:
    """Return the shape of an image's latents at a resolution in pixels; 0 is the model's own."""
    family, denoiser = find_family(pipe)
    distillation = require_distillation(family)
    return distillation.latent_shape(denoiser.config, resolution // find_pixels_per_latent(pipe))


def find_pixels_per_latent(pipe: Any) -> int:
    """Return the pixels of an image per latent of its denoiser; small models' autoencoders compress less."""
    compression = int(getattr(pipe, "vae_scale_factor", None) or pipe.vae_scale_factor_spatial)
    return compression * require_distillation(find_family(pipe)[0]).latent_patch_size


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
    """The part of a pipeline that encodes texts, with one text encoder or several, frozen."""

    pipe: Any
    family: Family
    num_tokens: int = 0  # to which texts are padded, if the encoder pads to the longest of a batch

    def to(self, dtype: torch.dtype) -> None:
        """Convert the text encoders' dtype."""
        for part in list_text_encoders(self.pipe):
            cast_frozen(part, dtype)

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
    for part in list_text_encoders(pipe):
        part.requires_grad_(False).eval().to(device)
    distillation = require_distillation(family)
    config = _read_config(folder / family.denoiser_part / "config.json")
    return TextEncoder(pipe, family, distillation.text_shape(config)[0] if distillation.masks_padding else 0)


def list_text_encoders(pipe: Any) -> list[torch.nn.Module]:
    """Return a pipeline's text encoders: SDXL has two, Stable Diffusion 3 three."""
    parts = pipe.components.items()
    return [part for name, part in parts if name.startswith("text_encoder") and isinstance(part, torch.nn.Module)]


def load(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    start_timestep: int = -1,
    student_steps: int = 1,
    resolution: int = 0,
    cached_embeds: Mapping[str, PromptEmbeds] | None = None,
    compute_dtype: torch.dtype = torch.float32,
) -> TextToImage:
    """Load the pipeline of a folder; with `cached_embeds` its text encoders are left out.

    It is loaded in host memory and cast there, so that a device never holds it in float32 if that is not asked for.
    """
    try:
        pipe = load_pipeline(folder, **(_list_absent_encoders(folder) if cached_embeds else {}))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"teacher: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    options: dict[str, Any] = {"start_timestep": start_timestep, "student_steps": student_steps}
    try:
        shift = compute_flow_shift(pipe, resolution)
        diffusion = read_diffusion(pipe.scheduler, device, flow_shift=shift, **options)
    except ValueError as error:
        field = "teacher." if str(error).startswith("scheduler") else "method."
        raise UserError(f"{field}{error}") from None
    if not (diffusion.is_one_full_step or require_distillation(find_family(pipe)[0]).takes_timesteps):
        name = "student_steps" if student_steps > 1 else "start_timestep"
        expected = f"{1 if student_steps > 1 else -1}, as {type(pipe).__name__} takes no timesteps"
        raise invalid(f"method.{name}", options[name], expected)
    model = TextToImage(folder, pipe, diffusion, cached_embeds or {}, resolution, compute_dtype)
    for part in list_text_encoders(pipe):
        cast_frozen(part, compute_dtype)
    cast_denoiser(model.denoiser, model)
    for part in model.list_modules():
        part.requires_grad_(False).eval().to(device)
    return model


def cast_denoiser(denoiser: Any, model: TextToImage) -> None:
    """Cast a frozen denoiser to a model's `compute_dtype` in place, without its output layer."""
    cast_frozen(denoiser, model.compute_dtype, keep=get_output_layer(denoiser, model.family))


def load_for_recipe(
    recipe: Recipe,
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    cached_embeds: Mapping[str, PromptEmbeds] | None = None,
    compute_dtype: torch.dtype = torch.float32,
) -> TextToImage:
    """Load a recipe's teacher, at its resolution and with its student's timesteps."""
    options = get_student_options(recipe)
    return load(folder, device, **options, cached_embeds=cached_embeds, compute_dtype=compute_dtype)


def load_for_evaluation(recipe: Recipe, folder: Path, device: torch.device | str = "cpu") -> TextToImage:
    """Load a recipe's teacher in the precision of its evaluation."""
    return load_for_recipe(recipe, folder, device, compute_dtype=getattr(torch, recipe.evaluation.precision))


def get_student_options(recipe: Recipe) -> dict[str, int]:
    """Return what a recipe's student is sampled with: the start timestep, the number of steps, the resolution."""
    method = recipe.method
    steps = {"start_timestep": method.start_timestep, "student_steps": method.student_steps}
    return {**steps, "resolution": recipe.resolution}


def compute_flow_shift(pipe: Any, resolution: int) -> float | None:
    """Return the shift of a flow-matching teacher's scheduler at a resolution, and None for a diffusion teacher."""
    if not is_flow_matching(pipe.scheduler):
        return None
    distillation = require_distillation(find_family(pipe)[0])
    tokens = distillation.count_image_tokens(get_latent_shape(pipe, resolution))
    return distillation.compute_flow_shift(pipe.scheduler.config, tokens)


def _list_absent_encoders(folder: Path) -> dict[str, None]:
    listed = json.loads((folder / "model_index.json").read_text())
    return dict.fromkeys(name for name in listed if name.startswith("text_encoder"))


def load_pipeline(folder: Path, **parts: None) -> Any:
    """Load a pipeline in float32, without `UNUSED_PARTS` and without the `parts` that are None.

    A folder may lack a part that its pipeline class requires, such as Stable Diffusion 3 saved without T5.
    """
    listed = json.loads((folder / "model_index.json").read_text())
    parts |= dict.fromkeys(part for part, entry in listed.items() if part in UNUSED_PARTS or entry == [None, None])
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


def save_student(
    teacher: Path,
    weights: dict[str, Tensor],
    target: Path,
    *,
    start_timestep: int = -1,
    student_steps: int = 1,
    resolution: int = 0,
) -> str:
    """Write the student as a diffusers folder that generates in a few steps; returns the folder's hash.

    Its scheduler takes the student's timesteps: `pipe(prompt, **build_call_options(folder))`.
    """
    options: dict[str, Any] = {"start_timestep": start_timestep, "student_steps": student_steps}
    record = dict(options)

    def build_scheduler(pipe: Any) -> Any:
        record.update(measure_image(pipe, resolution))
        diffusion = read_diffusion(pipe.scheduler, flow_shift=compute_flow_shift(pipe, resolution), **options)
        return require_distillation(detect_family(teacher)).build_scheduler(pipe.scheduler.config, diffusion)

    return save_denoiser(teacher, weights, target, build_scheduler, record)


def measure_image(pipe: Any, resolution: int) -> dict[str, int]:
    """Return the options of the pipeline's call for the size of its images or videos, in pixels and frames."""
    _, *frames, height, width = get_latent_shape(pipe, resolution)
    pixels = find_pixels_per_latent(pipe)
    size = {"height": height * pixels, "width": width * pixels}
    per_latent = require_distillation(find_family(pipe)[0]).frames_per_latent
    return size | ({"num_frames": per_latent * (frames[0] - 1) + 1} if frames else {})


def build_call_options(student: Path) -> dict[str, Any]:
    """Return the options of the pipeline's call that sample a student that `save_student` wrote."""
    size = {key: value for key, value in read_student_record(student).items() if key not in STEP_OPTIONS}
    call = require_distillation(detect_family(student)).build_call_options(read_student_diffusion(student))
    return {**call, **size}


def read_student_diffusion(student: Path) -> DiffusionProcess:
    """Return the forward process of a student's scheduler, with the student's timesteps."""
    steps = {name: value for name, value in read_student_record(student).items() if name in STEP_OPTIONS}
    config = _read_config(student / "scheduler" / "scheduler_config.json")
    return read_diffusion(getattr(diffusers, config["_class_name"]).from_config(config), **steps)


def _read_config(file: Path) -> FrozenDict:
    return FrozenDict(json.loads(file.read_text()))


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
        pipe.scheduler = scheduler(pipe)
    with _silence_libraries():
        pipe.save_pretrained(target)
    remove_source_paths(target)
    if held := read_student_record(folder) if record is None else record:
        (target / STUDENT_FILE).write_text(json.dumps(dict(held), indent=2) + "\n")
    return hash_folder(target)


def remove_source_paths(folder: Path) -> None:
    """Remove the folder that each part was loaded from, which diffusers writes into its configuration.

    Another machine, or another session of Ray on the same one, has it elsewhere; equal students have equal files.
    """
    for file in folder.rglob("*.json"):
        values = json.loads(file.read_text())
        if isinstance(values, dict) and values.pop("_name_or_path", None):
            file.write_text(json.dumps(values, indent=2) + "\n")


def read_student_record(folder: Path) -> dict[str, Any]:
    """Return what `save_student` wrote beside diffusers' own files; empty for any other folder."""
    file = folder / STUDENT_FILE
    return dict(json.loads(file.read_text())) if file.is_file() else {}
