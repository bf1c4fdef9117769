"""Arithmetic of one denoiser call at true size, counted by torch on the meta device: no weights, no memory, no GPU.

    python -m benchmarks.flops

One image (or video) a call; text encoders and the decoder left out. The extra is over the plain call: classifier-free
guidance, NAG and NASA with K- and V- computed in each call, and NASA with them computed once for a `with` block.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import nasa
from nasa import architectures

GIGA = 1e9


@dataclass(frozen=True)
class System:
    """A denoiser as published; `inputs(batch)` are its call's arguments, `text` the [tokens, features] of a prompt."""

    name: str
    model: Callable[[], Any]
    text: tuple[int, int]
    inputs: Callable[[int], dict[str, Tensor]]
    attribute: str = "transformer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAME", help="systems whose name begins so (default: all)")
    chosen = [system for system in SYSTEMS if system.name.startswith(parser.parse_args().only)]
    print("| system | plain, GFLOP | CFG | NAG | NASA | NASA, K- and V- reused |")
    print("|---|---|---|---|---|---|")
    for system in chosen:
        with torch.device("meta"):
            row = extras(system)
        shares = " | ".join(f"{row[way]:+.2%}" for way in ("cfg", "nag", "nasa", "nasa reused"))
        print(f"| {system.name} | {row['plain'] / GIGA:,.0f} | {shares} |", flush=True)


def extras(system: System) -> dict[str, float]:
    """The plain call's arithmetic, and what each way adds to it as a share."""
    model = system.model().eval()
    plain = count(model, system, 1)
    row: dict[str, float] = {"plain": plain, "cfg": count(model, system, 2) / plain - 1}
    for method in ("nag", "nasa"):
        first, later = steered(model, system, method)
        row[method] = first / plain - 1
    return {**row, "nasa reused": later / plain - 1}


def steered(model: Any, system: System, method: str) -> tuple[float, float]:
    """The first call of a block, in which K- and V- are computed, and a later one."""
    parts = {system.attribute: model, "scheduler": SimpleNamespace(timesteps=[0]), "encode_prompt": lambda: None}
    pipe = SimpleNamespace(**parts)
    reading = "joint" if method == "nag" else "text"  # NAG's authors attend to the negative and the image
    negative = torch.zeros(1, *system.text)
    with nasa.steer(pipe, negative_prompt_embeds=negative, scale=0.5, rule=method, joint_attention=reading):
        return count(model, system, 1), count(model, system, 1)


@torch.no_grad()
def count(model: Any, system: System, batch: int) -> float:
    inputs = {**system.inputs(batch), "encoder_hidden_states": torch.zeros(batch, *system.text)}
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return float(counter.get_total_flops())


def sana_sprint() -> Any:
    return diffusers.SanaTransformer2DModel(guidance_embeds=True, qk_norm="rms_norm_across_heads", timestep_scale=1000)


def wan() -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096
    )


def stable_diffusion_35() -> Any:
    return diffusers.SD3Transformer2DModel(
        num_layers=38,
        num_attention_heads=38,
        caption_projection_dim=2432,
        joint_attention_dim=4096,
        pos_embed_max_size=192,
        qk_norm="rms_norm",
    )


def qwen_image() -> Any:
    return diffusers.QwenImageTransformer2DModel()


def latents(*shape: int, **more: tuple[int, ...]) -> Callable[[int], dict[str, Tensor]]:
    """A UNet's arguments."""

    def inputs(batch: int) -> dict[str, Any]:
        extra = {name: torch.zeros(batch, *size) for name, size in more.items()}
        plain = {"sample": torch.zeros(batch, *shape), "timestep": torch.ones(batch)}
        return {**plain, "added_cond_kwargs": extra} if extra else plain

    return inputs


def tokens(*shape: int, **more: tuple[int, ...]) -> Callable[[int], dict[str, Tensor]]:
    """A transformer's arguments; ids belong to no image of the batch."""

    def inputs(batch: int) -> dict[str, Tensor]:
        sizes = {name: size if name.endswith("ids") else (batch, *size) for name, size in more.items()}
        extra = {name: torch.zeros(size) for name, size in sizes.items()}
        return {"hidden_states": torch.zeros(batch, *shape), "timestep": torch.ones(batch), **extra}

    return inputs


def packed(batch: int) -> dict[str, Any]:
    """Qwen-Image's arguments for a square of 1024: patches of two by two latents, in rows."""
    return {**tokens(4096, 64)(batch), "img_shapes": [[(1, 64, 64)]] * batch, "encoder_hidden_states_mask": None}


SYSTEMS = (
    System("Stable Diffusion 1.5, 512", architectures.build_stable_diffusion_15, (77, 768), latents(4, 64, 64), "unet"),
    System(
        "Stable Diffusion 2.1, 512",
        architectures.build_stable_diffusion_21,
        (77, 1024),
        latents(4, 64, 64),
        "unet",
    ),
    System(
        "SDXL, 1024",
        architectures.build_sdxl,
        (77, 2048),
        latents(4, 128, 128, text_embeds=(1280,), time_ids=(6,)),
        "unet",
    ),
    System("PixArt-alpha, 512", architectures.build_pixart_alpha, (120, 4096), tokens(4, 64, 64)),
    System("SANA-Sprint 1.6B, 1024", sana_sprint, (300, 2304), tokens(32, 32, 32, guidance=())),
    System("Wan 2.1 1.3B, 81 frames of 480 x 832", wan, (512, 4096), tokens(16, 21, 60, 104)),
    System(
        "FLUX.1-schnell, 1024",
        diffusers.FluxTransformer2DModel,
        (256, 4096),
        tokens(4096, 64, pooled_projections=(768,), img_ids=(4096, 3), txt_ids=(256, 3)),
    ),
    System(
        "Stable Diffusion 3.5 large, 1024",
        stable_diffusion_35,
        (333, 4096),
        tokens(16, 128, 128, pooled_projections=(2048,)),
    ),
    System("Qwen-Image, 1024, 64 tokens", qwen_image, (64, 3584), packed),
)


if __name__ == "__main__":
    main()
