"""Operations of one denoiser call at true size, counted on the meta device: no weights, no memory, no GPU.

    python -m benchmarks.flops

A call makes one image or video; text encoders and decoder are not counted. The columns are the extra over the plain
call: classifier-free guidance, NAG and NASA with K- and V- computed in the call, and NASA with K- and V- reused from an
earlier call of the `with` block.
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
from nasa.families import find_denoiser_family

GIGA = 1e9


@dataclass(frozen=True)
class Workload:
    """A published denoiser; `inputs(batch)` returns its call's arguments, `text` is a prompt's [tokens, features]."""

    name: str
    model: Callable[[], Any]
    text: tuple[int, int]
    inputs: Callable[[int], dict[str, Tensor]]
    attribute: str = "transformer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAME", help="only models whose name starts with this")
    selected = [workload for workload in WORKLOADS if workload.name.startswith(parser.parse_args().only)]
    print("| model | plain, GFLOP | CFG | NAG | NASA | NASA, K- and V- reused |")
    print("|---|---|---|---|---|---|")
    for workload in selected:
        with torch.device("meta"):
            row = count_extras(workload)
        shares = " | ".join(f"{row[method]:+.2%}" for method in ("cfg", "nag", "nasa", "nasa reused"))
        print(f"| {workload.name} | {row['plain'] / GIGA:,.0f} | {shares} |", flush=True)


def count_extras(workload: Workload) -> dict[str, float]:
    """Return the plain call's operations, and what each method adds to them as a share."""
    model = workload.model().eval()
    plain = count_flops(model, workload, 1)
    row: dict[str, float] = {"plain": plain, "cfg": count_flops(model, workload, 2) / plain - 1}
    for method in ("nag", "nasa"):
        first, later = count_steered(model, workload, method)
        row[method] = first / plain - 1
    return {**row, "nasa reused": later / plain - 1}


def count_steered(model: Any, workload: Workload, rule: str) -> tuple[float, float]:
    """Return the operations of a block's first call, which computes K- and V-, and of a later one."""
    parts = {workload.attribute: model, "scheduler": SimpleNamespace(timesteps=[0]), "encode_prompt": lambda: None}
    pipe = SimpleNamespace(**parts)
    joint_attention = "joint" if rule == "nag" else "text"  # as NAG's authors: to the negative and the image
    negative = torch.zeros(1, *workload.text)
    with nasa.steer(pipe, negative_prompt_embeds=negative, scale=0.5, rule=rule, joint_attention=joint_attention):
        return count_flops(model, workload, 1), count_flops(model, workload, 1)


@torch.no_grad()
def count_flops(model: Any, workload: Workload, batch: int) -> float:
    text = find_denoiser_family(model).arguments.text
    inputs = {**workload.inputs(batch), text: torch.zeros(batch, *workload.text)}
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return float(counter.get_total_flops())


def build_sana_sprint() -> Any:
    return diffusers.SanaTransformer2DModel(guidance_embeds=True, qk_norm="rms_norm_across_heads", timestep_scale=1000)


def unet_inputs(*shape: int, **more: tuple[int, ...]) -> Callable[[int], dict[str, Tensor]]:
    """Return a function from the batch size to a UNet's arguments."""

    def inputs(batch: int) -> dict[str, Any]:
        extra = {name: torch.zeros(batch, *size) for name, size in more.items()}
        plain = {"sample": torch.zeros(batch, *shape), "timestep": torch.ones(batch)}
        return {**plain, "added_cond_kwargs": extra} if extra else plain

    return inputs


def transformer_inputs(*shape: int, **more: tuple[int, ...]) -> Callable[[int], dict[str, Tensor]]:
    """Return a function from the batch size to a transformer's arguments; ids have no batch dimension."""

    def inputs(batch: int) -> dict[str, Tensor]:
        sizes = {name: size if name.endswith("ids") else (batch, *size) for name, size in more.items()}
        extra = {name: torch.zeros(size) for name, size in sizes.items()}
        return {"hidden_states": torch.zeros(batch, *shape), "timestep": torch.ones(batch), **extra}

    return inputs


def qwen_image_inputs(batch: int) -> dict[str, Any]:
    """Return Qwen-Image's arguments for a square of 1024: patches of two by two latents, packed in rows."""
    return {
        **transformer_inputs(4096, 64)(batch),
        "img_shapes": [[(1, 64, 64)]] * batch,
        "encoder_hidden_states_mask": None,
    }


def z_image_inputs(batch: int) -> dict[str, Any]:
    """Return Z-Image's arguments for images of 1024, videos of one frame each."""
    return {"x": list(torch.zeros(batch, 16, 1, 128, 128)), "t": torch.ones(batch)}


WORKLOADS = (
    Workload(
        "Stable Diffusion 1.5, 512", architectures.build_stable_diffusion_15, (77, 768), unet_inputs(4, 64, 64), "unet"
    ),
    Workload(
        "Stable Diffusion 2.1, 512",
        architectures.build_stable_diffusion_21,
        (77, 1024),
        unet_inputs(4, 64, 64),
        "unet",
    ),
    Workload(
        "SDXL, 1024",
        architectures.build_sdxl,
        (77, 2048),
        unet_inputs(4, 128, 128, text_embeds=(1280,), time_ids=(6,)),
        "unet",
    ),
    Workload("PixArt-alpha, 512", architectures.build_pixart_alpha, (120, 4096), transformer_inputs(4, 64, 64)),
    Workload("SANA-Sprint 1.6B, 1024", build_sana_sprint, (300, 2304), transformer_inputs(32, 32, 32, guidance=())),
    Workload(
        "Wan 2.1 1.3B, 81 frames of 480 x 832",
        architectures.build_wan_13b,
        (512, 4096),
        transformer_inputs(16, 21, 60, 104),
    ),
    Workload(
        "FLUX.1-schnell, 1024",
        diffusers.FluxTransformer2DModel,
        (256, 4096),
        transformer_inputs(4096, 64, pooled_projections=(768,), img_ids=(4096, 3), txt_ids=(256, 3)),
    ),
    Workload(
        "Stable Diffusion 3.5 large, 1024",
        architectures.build_stable_diffusion_35_large,
        (333, 4096),
        transformer_inputs(16, 128, 128, pooled_projections=(2048,)),
    ),
    Workload("Qwen-Image, 1024, 64 tokens", architectures.build_qwen_image, (64, 3584), qwen_image_inputs),
    Workload("Z-Image, 1024, 64 tokens", architectures.build_z_image, (64, 2560), z_image_inputs),
)


if __name__ == "__main__":
    main()
