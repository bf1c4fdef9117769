"""The error that rounding a denoiser's output to bfloat16 makes in a one-step image, by start timestep.

python -m benchmarks.rounding
"""

import torch
from diffusers import DDIMScheduler

from nasa.parameterization import alpha_sigma, to_x0

SCHEDULES = {
    "Stable Diffusion": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "PixArt-alpha": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
}
STARTS = (("Stable Diffusion", 999), ("PixArt-alpha", 999), ("PixArt-alpha", 400))
IMAGE_RMS = 0.9  # of scaled latents


def main() -> None:
    heading = f"rms error of x0 from rounding eps to bfloat16 (rms of x0: {IMAGE_RMS})"
    print(f"| schedule | start | 1 / alpha | {heading} |\n|---|---|---|---|")
    for name, start in STARTS:
        alphas_cumprod = DDIMScheduler(**SCHEDULES[name]).alphas_cumprod
        alpha, error = measure_rounding_error(alphas_cumprod, start)
        print(f"| {name} | {start} | {1 / alpha:.1f} | {error:.3f} |")


def measure_rounding_error(alphas_cumprod: torch.Tensor, start: int) -> tuple[float, float]:
    """Return alpha and the rms error of x0 from rounding eps."""
    generator = torch.Generator().manual_seed(0)
    noise, x0 = torch.randn(2, 4, 4, 64, 64, generator=generator)
    x0 = x0 * IMAGE_RMS
    alpha, sigma = alpha_sigma(alphas_cumprod, torch.full((4,), start))
    eps = ((noise - alpha * x0) / sigma).bfloat16()
    rounded = to_x0(eps, noise, alpha, sigma, "epsilon")
    return float(alpha[0]), float((rounded - x0).square().mean().sqrt())


if __name__ == "__main__":
    main()
