"""Time of one denoiser call: plain, with CFG, with NAG and with NASA, interleaved, as ratios to plain.

    python -m benchmarks.wall_clock                                # a quarter-width SDXL-like UNet on the CPU
    python -m benchmarks.wall_clock --width 320 --device cuda --dtype float16

Each round times every way once, in a new random order; the ratio is of a way to plain within a round, and the table
gives its median with the middle half of the rounds.
"""

import argparse
import random
import time
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch

import nasa

diffusers.utils.logging.set_verbosity_error()
WAYS = ("plain", "CFG", "NAG", "NASA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=80, help="channels of the first level; 320 is Stable Diffusion's")
    parser.add_argument("--side", type=int, default=64, help="side of the latents")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    ratios = measure(options)
    print("| way | ratio to plain |\n|---|---|")
    for way in WAYS[1:]:
        low, middle, high = np.percentile(ratios[way], (25, 50, 75))
        print(f"| {way} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    place = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=tuple(options.width * factor for factor in (1, 2, 4, 4)),
        cross_attention_dim=768,
        norm_num_groups=16,
    )
    unet.to(**place).eval()
    pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=[0]))
    text = torch.randn(options.batch, 77, 768, **place)
    latents = torch.randn(options.batch, 4, options.side, options.side, **place)
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_number in range(options.rounds + 1):
        order = random.Random(round_number).sample(WAYS, len(WAYS))
        seconds = {way: timed(way, pipe, latents, text) for way in order}
        if round_number:  # the first round warms up
            for way in WAYS:
                ratios[way].append(seconds[way] / seconds["plain"])
    return ratios


def timed(way: str, pipe: Any, latents: torch.Tensor, text: torch.Tensor) -> float:
    """Seconds of the second of two calls; the first computes a steering block's keys and warms all ways alike."""
    copies = 2 if way == "CFG" else 1
    inputs = torch.cat([latents] * copies), 500, torch.cat([text] * copies)
    with torch.inference_mode(), block(way, pipe, text):
        for _ in range(2):
            synchronise(latents.device)
            start = time.perf_counter()
            pipe.unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2])
            synchronise(latents.device)
        return time.perf_counter() - start


def block(way: str, pipe: Any, text: torch.Tensor) -> AbstractContextManager[Any]:
    if way in ("plain", "CFG"):
        return nullcontext()
    return nasa.steer(pipe, negative_prompt_embeds=text[:1].flip(1), scale=0.3, rule=way.lower())


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
