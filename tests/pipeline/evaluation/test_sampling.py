"""The many-step teacher, with a denoiser that predicts the noise exactly."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from nasa.random_numbers import draw_seeded_noise
from nasa.testing.tiny_pipelines import tiny_pixart
from pipeline import models
from pipeline.evaluation.sampling import Sampler, SamplingMethod


class ExactDenoiser(torch.nn.Module):
    """A denoiser that returns the exact noise for a single image."""

    def __init__(self, x0, alphas_cumprod):
        super().__init__()
        self.x0, self.alphas_cumprod = x0, alphas_cumprod

    def forward(self, latents, timestep_B, _):
        abar = self.alphas_cumprod[timestep_B.long()].reshape(-1, 1, 1, 1)
        return (latents - abar.sqrt() * self.x0) / (1 - abar).sqrt()


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_latents_are_not_clipped_with_any_scheduler(tmp_path, scheduler):
    """PixArt's scheduler has no `clip_sample`, and DDIM with such a configuration would clip latents to -1..1."""
    pipe = tiny_pixart()
    pipe.scheduler = scheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000)
    pipe.save_pretrained(tmp_path / "teacher")
    model = models.load(tmp_path / "teacher")
    sampler = Sampler(model)
    x0 = 1.5 * torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    assert x0.abs().max() > 2
    sampler.denoiser = ExactDenoiser(x0, model.pipe.scheduler.alphas_cumprod)
    noise, embeds = draw_seeded_noise([1], model.latent_shape), model.encode(["a cat"])
    actual = sampler._sample_many_steps(SamplingMethod("steps", 3.0, 25), noise, embeds, model.encode([""]))
    torch.testing.assert_close(actual, x0, atol=0.02, rtol=0)


def test_timesteps_are_made_on_the_denoisers_device(tiny_teacher, monkeypatch):
    """Otherwise the many-step teacher fails on a GPU, where no default test runs."""
    model = models.load(tiny_teacher)
    sampler, devices = Sampler(model), []
    original = DDIMScheduler.set_timesteps

    def record(self, num_inference_steps, device=None):
        devices.append(device)
        original(self, num_inference_steps, device)

    monkeypatch.setattr(DDIMScheduler, "set_timesteps", record)
    sampler.sample(SamplingMethod("steps", 3.0, 2), ["a cat"], [1])
    assert devices == [next(model.denoiser.parameters()).device]
