"""Estimated memory and FLOPs per GPU, from one step on the meta device without weights."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nasa.families import Family, find_published_model
from nasa.lora import add_lora, get_lora_parameters
from nasa.meta_autocast import observe_weight_casts
from nasa.steerable_denoiser import make_steerable, require_distillation
from pipeline import models
from pipeline.model_download import is_hub_id
from pipeline.recipe import Recipe
from pipeline.training.engines import add_student_lora, choose_lora_targets
from pipeline.training.state_memory import NetworkSize, estimate_gpu_bytes

UTILISATION = 0.4  # share of a GPU's peak that the arithmetic reaches: an assumption, not a measurement
VAE_PARAMETERS = 84e6  # Stable Diffusion's autoencoder; those of other families have about as many
RESERVED = 2.0e9  # bytes of a GPU for its context, its libraries and what the allocator cannot use
GIB = 2**30
UNSHARDED = ("text encoder", "activations of a pass", "CLIP loss", "regression's activations", "reserved")


@dataclass(frozen=True)
class Estimate:
    """Bytes of one GPU, by what they are for, and the floating-point operations of one step on it.

    `forward_flops` are the denoiser's FLOPs for one image, `parameters` its parameter count, `trained` the student's
    trained parameters, `lora_parameters` the LoRA teacher's. `start_up` are the bytes while a worker starts: both
    networks are whole, in every ZeRO stage.
    """

    memory: dict[str, float]
    flops: float
    parameters: int
    passes: int
    forward_flops: float
    trained: int
    lora_parameters: int
    start_up: float = 0.0

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.memory.values())

    @property
    def needed(self) -> float:
        """Bytes that the GPU must have."""
        return max(self.total, self.start_up)

    def step_seconds(self, peak_flops: float) -> float:
        """Return a step's seconds on a GPU with this peak, at the assumed utilisation."""
        return self.flops / (UTILISATION * peak_flops)


def build_meta_denoiser(recipe: Recipe) -> tuple[Any, Family]:
    """Return the teacher's denoiser on the meta device, and its family."""
    with torch.device("meta"):
        if (published := find_published_model(recipe.teacher)) and is_hub_id(recipe.teacher):
            return published[1].build_denoiser(), published[0]
        folder = models.find_teacher_folder(recipe.teacher, revision=recipe.revision)
        family = models.detect_family(folder)
        config = json.loads((Path(folder) / family.denoiser_part / "config.json").read_text())
        return getattr(diffusers, config["_class_name"]).from_config(config), family


def count_text_encoder_parameters(recipe: Recipe) -> int:
    """Return the teacher's text encoder's parameter count if it is published, else 0."""
    published = find_published_model(recipe.teacher)
    return published[1].text_encoder_parameters if published else 0


def estimate(recipe: Recipe) -> Estimate:
    """Estimate each of `train.num_workers` GPUs."""
    return replace_memory(recipe, measure(recipe))


def estimate_evaluation_bytes(recipe: Recipe, estimated: Estimate) -> float:
    """Return the bytes that an evaluation process needs at least: the weights, without activations and scorers."""
    size = 2.0 if recipe.evaluation.precision == "bfloat16" else 4.0
    weights = size * (2 * estimated.parameters + count_text_encoder_parameters(recipe))
    return weights + 4.0 * VAE_PARAMETERS + RESERVED


def measure(recipe: Recipe) -> Estimate:
    """Return the estimate of everything that ZeRO's stage and offload do not change; its memory has no states."""
    options, workers = recipe.train, recipe.train.num_workers
    passes = recipe.count_gradient_accumulation_steps(workers)
    micro = -(-options.batch_size // (workers * passes))
    reduced = options.precision == "bfloat16"
    model, family = build_meta_denoiser(recipe)
    model.requires_grad_(True)
    every = sum(p.numel() for p in model.parameters())
    add_student_lora(recipe, model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops, activations = _measure(recipe, model, family, micro, reduced)
    regression = recipe.regression
    pairs = min(regression.images, options.batch_size) / options.batch_size if regression.weight else 0.0  # per image
    decoder_flops, decoder_activations = _estimate_clip_loss_costs(recipe, micro, reduced)
    memory = {
        "activations of a pass": activations,
        "CLIP loss": decoder_activations,
        "regression's activations": activations * pairs,
        "text encoder": (2.0 if reduced else 4.0)
        * (0 if options.num_encoders else count_text_encoder_parameters(recipe)),
        "reserved": RESERVED,
    }
    forwards = _count_forwards(recipe)
    step = passes * (micro * flops * (forwards + _count_student_forwards(recipe) * pairs) + decoder_flops)
    return Estimate(memory, step, every, passes, flops, trained, _count_lora_parameters(recipe))


def _count_forwards(recipe: Recipe) -> float:
    """Return the forward passes of a step per image; a backward pass counts as two, or one if weights are frozen."""
    method, again = recipe.method, recipe.train.gradient_checkpointing
    earlier_steps = (method.student_steps - 1) / 2  # the mean, without gradient
    scores = 2 + (2 if method.lora_guidance else 1)
    return _count_student_forwards(recipe) + earlier_steps + scores + method.lora_updates * (2 + again)


def _count_student_forwards(recipe: Recipe) -> float:
    return 3 + recipe.train.gradient_checkpointing


def list_networks(recipe: Recipe, estimated: Estimate) -> tuple[NetworkSize, NetworkSize]:
    """Return the sizes of the student and of the teacher with its adapters."""
    every, trained, lora = estimated.parameters, estimated.trained, estimated.lora_parameters
    adapters = trained if recipe.student.lora_rank else 0
    frozen = 2.0 if recipe.train.precision == "bfloat16" else 4.0
    return NetworkSize(every + adapters, trained, frozen), NetworkSize(every + lora, lora, frozen)


def replace_memory(recipe: Recipe, measured: Estimate) -> Estimate:
    """Return the estimate with the states of both networks as the recipe's ZeRO stage and offload place them."""
    student, teacher = list_networks(recipe, measured)
    reduced = recipe.train.precision == "bfloat16"
    memory = {f"student's {name}": value for name, value in estimate_gpu_bytes(recipe.train, student).items()}
    memory["student's bfloat16 copy"] = 2.0 * student.trained if reduced else 0.0  # cast by autocast in every stage
    memory["student's moving average"] = 4.0 * student.trained
    memory |= {f"teacher's {name}": value for name, value in estimate_gpu_bytes(recipe.train, teacher).items()}
    start_up = student.weight_bytes + teacher.weight_bytes + measured.memory["text encoder"] + RESERVED
    return replace(measured, memory=memory | {name: measured.memory[name] for name in UNSHARDED}, start_up=start_up)


def get_latent_shape(recipe: Recipe, model: Any, family: Family) -> tuple[int, ...]:
    """Return the shape of one image's latents at the recipe's resolution."""
    distillation = require_distillation(family)
    return distillation.latent_shape(model.config, recipe.resolution // distillation.pixels_per_latent)


def _measure(recipe: Recipe, model: Any, family: Family, batch: int, reduced: bool) -> tuple[float, float]:
    """Return the FLOPs of a forward pass of one image, and the bytes that a pass of `batch` keeps for backward."""
    distillation = require_distillation(family)
    with torch.device("meta"):
        denoiser = make_steerable(model, torch.bfloat16 if reduced else torch.float32, family)
        if recipe.train.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        shape = get_latent_shape(recipe, model, family)

        def inputs(count: int) -> tuple[Any, ...]:
            return (
                torch.zeros(count, *shape),
                torch.zeros(count),
                distillation.make_empty_prompts(model.config, count),
            )

        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            denoiser(*inputs(1))
        bytes_kept = count_saved_bytes(lambda: denoiser(*inputs(batch)), model)
    return float(counter.get_total_flops()), bytes_kept


def count_saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> float:
    """Count the bytes that autograd keeps of a forward pass, each storage once, without weights and their casts."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = (storage.nbytes(), storage)  # keeps it alive, so that its address is not reused
        return tensor

    keep = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with _use_fused_attention(), observe_weight_casts() as casts, keep:
        output = forward()
    del output
    weights = {cast.untyped_storage()._cdata for cast in casts}
    return float(sum(size for address, (size, _) in saved.items() if address not in weights))


class _FusedAttention(torch.autograd.Function):
    """Counts what fused attention keeps: its inputs and output, not the attention weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise NotImplementedError("only what a forward pass saves is counted")


@contextmanager
def _use_fused_attention() -> Iterator[None]:
    """Replace attention by its fused form: the meta device would take the unfused path."""
    plain = F.scaled_dot_product_attention
    apply: Any = _FusedAttention.apply
    fused: Any = lambda query, key, value, *_, **__: apply(query, key, value)  # noqa: E731
    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _count_lora_parameters(recipe: Recipe) -> int:
    model, family = build_meta_denoiser(recipe)
    with torch.device("meta"):
        add_lora(
            model,
            rank=recipe.lora_teacher.rank,
            lora_alpha=recipe.lora_teacher.lora_alpha,
            target_modules=choose_lora_targets(recipe, family),
        )
    return sum(p.numel() for p in get_lora_parameters(model))


def _estimate_clip_loss_costs(recipe: Recipe, micro: int, reduced: bool) -> tuple[float, float]:
    """Return the FLOPs of decoding the CLIP loss's images, with the backward pass, and the bytes kept for it."""
    options = recipe.train
    images = max(1, -(-min(options.clip_images, options.batch_size) * micro // options.batch_size))  # images per pass
    if not options.clip_weight:
        return 0.0, 0.0
    channels, *_, height, width = get_latent_shape(recipe, *build_meta_denoiser(recipe))
    with torch.device("meta"):
        decoder = (
            diffusers.AutoencoderTiny(latent_channels=channels)
            if options.clip_decoder
            else _build_autoencoder(channels)
        )
        nn.Module.to(decoder, torch.bfloat16 if reduced else torch.float32).requires_grad_(False)
        dtype = next(decoder.parameters()).dtype
        latents = torch.zeros(images, channels, height, width, dtype=dtype, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            saved_bytes = count_saved_bytes(lambda: decoder.decode(latents, return_dict=False)[0], decoder)
    return 2.0 * counter.get_total_flops(), saved_bytes


def _build_autoencoder(channels: int) -> Any:
    """Return Stable Diffusion's autoencoder, with this many latent channels."""
    return diffusers.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
