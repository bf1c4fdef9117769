"""Images of one student, in batches whose requests have prompts, negatives, scales, methods and seeds of their own."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nasa import negative_keys, prompt_embeds
from nasa.attention_rules import RULES
from nasa.mixed_precision import cast_frozen
from nasa.negative_keys import NegativeKeys
from nasa.prompt_embeds import PromptEmbeds
from nasa.steerable_denoiser import get_output_layer, make_steerable
from nasa.student import generate, generate_with_cfg
from pipeline import models
from pipeline.errors import UserError
from pipeline.generation.image_request import ImageRequest
from pipeline.generation.text_cache import TextCache

MAX_TEXT_BYTES = 128 * 2**20
MAX_KEY_BYTES = 256 * 2**20
Negative = PromptEmbeds | NegativeKeys
ObserveStage = Callable[[str, float], None]  # called with "text", "denoise" or "decode" and its seconds


class ImageGenerator:
    """Generates images of a student's folder; one request gives the same image in any batch, but for rounding.

    Requests with NASA and plain ones share one pass of the denoiser; each other method has a pass of its own.
    `scale` is that of requests without one.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 16,
        scale: float = 0.5,
        observe: ObserveStage = lambda stage, seconds: None,
    ) -> None:
        record = models.read_student_record(folder)
        if "num_frames" in record:
            raise UserError(f"student: got {str(folder)!r}, whose student makes videos; expected one of images.")
        steps = {name: record[name] for name in ("start_timestep", "student_steps") if name in record}
        self.model = models.load(folder, device, **steps, resolution=record.get("height", 0))
        self.device, self.batch_size, self.scale, self._observe = torch.device(device), batch_size, scale, observe
        self._denoiser = make_steerable(self.model.denoiser, dtype, self.model.family).eval()
        if dtype != torch.float32:
            cast_frozen(self.model.denoiser, dtype, keep=get_output_layer(self.model.denoiser, self.model.family))
        self.texts = TextCache(self._encode, _count_bytes, MAX_TEXT_BYTES)
        self.negatives: TextCache[Negative] = TextCache(self._prepare_negative, _count_bytes, MAX_KEY_BYTES)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images in pixels."""
        *_, height, width = self.model.latent_shape
        pixels = models.find_pixels_per_latent(self.model.pipe)
        return width * pixels, height * pixels

    @torch.inference_mode()
    def generate(self, requests: Sequence[ImageRequest]) -> list[np.ndarray]:
        """Return one image per request, uint8 [H, W, 3]."""
        images: dict[int, np.ndarray] = {}
        requests = [self._complete(request) for request in requests]
        for method, places in _group_by_method(requests).items():
            for first in range(0, len(places), self.batch_size):
                batch = places[first : first + self.batch_size]
                latents = self._sample(method, [requests[place] for place in batch])
                images.update(zip(batch, self._decode(latents), strict=True))
        return [images[place] for place in range(len(requests))]

    def get_applied_scale(self, request: ImageRequest) -> float:
        """Return the scale of a request's negative prompt; 0 if it has no effect."""
        completed = self._complete(request)
        return 0.0 if completed.is_plain else float(completed.scale or 0.0)

    def _complete(self, request: ImageRequest) -> ImageRequest:
        return replace(request, scale=self.scale) if request.scale is None else request

    def _sample(self, method: str, requests: Sequence[ImageRequest]) -> Tensor:
        """Return the latents [B, C, H, W] of requests that share a pass of the denoiser."""
        diffusion, is_plain = self.model.diffusion, all(request.is_plain for request in requests)
        with self._measure("text"):
            prompt = prompt_embeds.cat(self.texts.get([request.prompt for request in requests]))
            negative = None if is_plain else self._collect_negatives(method, requests)
        with self._measure("denoise"):
            noise, *step_noise = self._draw_noise([request.seed for request in requests])
            if negative is None:
                return generate(self._denoiser, diffusion, noise, prompt, step_noise=step_noise)
            scale_B = self._collect_scales(requests)
            if isinstance(negative, PromptEmbeds) and method == "cfg":
                scale_B = scale_B.view(-1, *[1] * (noise.ndim - 1))
                return generate_with_cfg(
                    self._denoiser, diffusion, noise, prompt, negative, scale_B, step_noise=step_noise
                )
            self._denoiser.steering.rule = RULES[method]
            return generate(self._denoiser, diffusion, noise, prompt, negative, scale_B, step_noise=step_noise)

    def _draw_noise(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Yield the initial noise, then that of each further step, as diffusers' pipelines draw them from a seed."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for _ in range(1 + self.model.diffusion.num_step_noises):
            drawn = [torch.randn(self.model.latent_shape, generator=generator) for generator in generators]
            yield torch.stack(drawn).to(self.device)

    def _collect_scales(self, requests: Sequence[ImageRequest]) -> Tensor:
        return torch.tensor([self.get_applied_scale(request) for request in requests], device=self.device)

    def _collect_negatives(self, method: str, requests: Sequence[ImageRequest]) -> Negative:
        texts = [request.negative_prompt for request in requests]
        parts = self.texts.get(texts) if method == "cfg" else self.negatives.get(texts)
        if isinstance(parts[0], NegativeKeys):
            return negative_keys.cat([part for part in parts if isinstance(part, NegativeKeys)])
        return prompt_embeds.cat([part for part in parts if isinstance(part, PromptEmbeds)])

    @contextmanager
    def _measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._observe(stage, time.perf_counter() - start)

    def _encode(self, text: str) -> PromptEmbeds:
        return self.model.encode([text])

    def _prepare_negative(self, text: str) -> Negative:
        (embeds,) = self.texts.get([text])
        if self.model.family.extend:
            return embeds
        return self._denoiser.compute_negative_keys(embeds)

    def _decode(self, latents: Tensor) -> np.ndarray:
        with self._measure("decode"):
            images = self.model.decode(latents).float()
            pixels: np.ndarray = ((images / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return pixels


def _group_by_method(requests: Sequence[ImageRequest]) -> dict[str, list[int]]:
    """Return the places of requests by method; plain ones go with NASA, which is plain at a scale of 0."""
    groups: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault("nasa" if request.is_plain else request.method, []).append(place)
    return groups


def _count_bytes(value: Negative) -> int:
    if isinstance(value, NegativeKeys):
        return value.nbytes
    return sum(part.nbytes for part in value.get_tensors().values())
