"""Time of one denoiser call with CFG, NAG and NASA, as ratios to a plain call.

    python -m benchmarks.wall_clock                                # a quarter-width SDXL-like UNet on the CPU
    python -m benchmarks.wall_clock --width 320 --device cuda --dtype float16

Each round times every method once, in a new random order. A ratio compares two times of the same round; the table has
the median and the middle half over the rounds.
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
METHODS = ("plain", "CFG", "NAG", "NASA")


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
    print("| method | ratio to plain |\n|---|---|")
    for method in METHODS[1:]:
        low, median, high = np.percentile(ratios[method], (25, 50, 75))
        print(f"| {method} | {median:.2f} ({low:.2f} to {high:.2f}) |")


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    placement = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=tuple(options.width * factor for factor in (1, 2, 4, 4)),
        cross_attention_dim=768,
        norm_num_groups=16,
    )
    unet.to(**placement).eval()
    pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=[0]))
    text = torch.randn(options.batch, 77, 768, **placement)
    latents = torch.randn(options.batch, 4, options.side, options.side, **placement)
    ratios: dict[str, list[float]] = {method: [] for method in METHODS}
    for round_number in range(options.rounds + 1):
        order = random.Random(round_number).sample(METHODS, len(METHODS))
        seconds = {method: time_call(method, pipe, latents, text) for method in order}
        if round_number:  # the first round warms up
            for method in METHODS:
                ratios[method].append(seconds[method] / seconds["plain"])
    return ratios


def time_call(method: str, pipe: Any, latents: torch.Tensor, text: torch.Tensor) -> float:
    """Return the seconds of the second of two calls; the first warms up and computes a steering block's keys."""
    copies = 2 if method == "CFG" else 1
    inputs = torch.cat([latents] * copies), 500, torch.cat([text] * copies)
    with torch.inference_mode(), steering_block(method, pipe, text):
        for _ in range(2):
            synchronize(latents.device)
            start = time.perf_counter()
            pipe.unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2])
            synchronize(latents.device)
        return time.perf_counter() - start


def steering_block(method: str, pipe: Any, text: torch.Tensor) -> AbstractContextManager[Any]:
    """Return the context of a call; it steers nothing for a plain one and for CFG."""
    if method in ("plain", "CFG"):
        return nullcontext()
    return nasa.steer(pipe, negative_prompt_embeds=text[:1].flip(1), scale=0.3, rule=method.lower())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
