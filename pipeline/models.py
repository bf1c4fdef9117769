"""Loading a teacher from a folder in diffusers' Stable Diffusion layout, and saving a student in the same."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from nasa.backbone import Diffusion, diffusion_of, encode_tokens, tokenize
from nasa.presets import last_timestep
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.recipe import EMBEDDED
from pipeline.storage import Folder

WEIGHTS = Path(__file__).parent / "shapes" / "weights"
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class TextToImage:
    """The parts of a text-to-image model, frozen, float32, in evaluation mode."""

    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: Any
    tokenizer: Any
    diffusion: Diffusion

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image's latents."""
        side = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), side, side

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompt embeddings [B, T, D]."""
        ids = tokenize(self.tokenizer, prompts).to(self.text_encoder.device)
        return encode_tokens(self.text_encoder, ids)


def teacher_folder(teacher: str, field: str = "teacher") -> Path:
    """Where the model of a recipe's field lies; checked to be a Stable Diffusion folder."""
    folder = WEIGHTS / "teacher" if teacher == EMBEDDED else Folder.of(teacher).local_copy(Path(tempfile.mkdtemp()))
    index = folder / "model_index.json"
    if not index.is_file() and teacher == EMBEDDED:
        raise UserError(
            f"{field}: the embedded teacher is not in {WEIGHTS}; make it with `python -m jobs train-shapes`"
        )
    if not index.is_file():
        raise UserError(f'{field}: {teacher!r} is no teacher (no model_index.json); allowed: a folder, or "{EMBEDDED}"')
    try:
        parts = json.loads(index.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{field}: {index} is not valid JSON: {error}") from error
    missing = [part for part in _PARTS if part not in parts or not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{field}: {teacher!r} lacks {', '.join(missing)}; allowed: a Stable Diffusion folder")
    return folder


def load(folder: Path, device: torch.device | str = "cpu", *, start_timestep: int = -1) -> TextToImage:
    try:
        pipe = load_pipeline(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"teacher: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval().to(device)
    try:
        diffusion = diffusion_of(pipe, device, start_timestep=start_timestep)
    except ValueError as error:
        raise UserError(f"method.{error}") from None
    return TextToImage(folder, pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, diffusion)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    pipe: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_unet(folder: Path, field: str = "student.init") -> UNet2DConditionModel:
    """The denoiser of a Stable Diffusion folder, float32."""
    try:
        unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(
            folder / "unet", dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{field}: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return unet


def save_student(teacher: Path, unet_weights: dict[str, Tensor], target: Path, *, start_timestep: int = -1) -> str:
    """Write the student as a diffusers folder that generates in one step; returns the folder's hash.

    Its scheduler starts a single step at t = T - 1 and returns the denoised latents:
    `pipe(prompt, num_inference_steps=1, guidance_scale=0)`; with another start, `timesteps=[start]` beside it.
    """
    scheduler = last_timestep if start_timestep == -1 else LCMScheduler.from_config
    return save_unet(teacher, unet_weights, target, scheduler)


def save_unet(folder: Path, weights: dict[str, Tensor], target: Path, scheduler: Any = None) -> str:
    """Write a Stable Diffusion folder with other weights of its denoiser; returns the new folder's hash."""
    pipe = load_pipeline(folder)
    pipe.unet.load_state_dict(weights)
    if scheduler:
        pipe.scheduler = scheduler(pipe.scheduler.config)
    pipe.save_pretrained(target)
    return manifest.folder_hash(target)
