"""What rounding a denoiser's output to bfloat16 does to the image of one step, by where the step starts.

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
    print(f"{'schedule':<18}{'start':>6}{'1 / alpha':>11}{'rms error of x0':>17}  (x0 itself: {IMAGE_RMS})")
    for name, start in STARTS:
        alphas_cumprod = DDIMScheduler(**SCHEDULES[name]).alphas_cumprod
        alpha, error = rounding_error(alphas_cumprod, start)
        print(f"{name:<18}{start:>6}{1 / alpha:>11.1f}{error:>17.4f}")


def rounding_error(alphas_cumprod: torch.Tensor, start: int) -> tuple[float, float]:
    """Return alpha and the rms error that rounding eps alone makes in x0."""
    generator = torch.Generator().manual_seed(0)
    noise, x0 = torch.randn(2, 4, 4, 64, 64, generator=generator)
    x0 = x0 * IMAGE_RMS
    alpha, sigma = alpha_sigma(alphas_cumprod, torch.full((4,), start))
    eps = ((noise - alpha * x0) / sigma).bfloat16()
    found = to_x0(eps, noise, alpha, sigma, "epsilon")
    return float(alpha[0]), float((found - x0).square().mean().sqrt())


if __name__ == "__main__":
    main()
