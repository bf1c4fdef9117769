"""The many-step teacher, with a denoiser that predicts the noise exactly."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from nasa.random_numbers import draw_seeded_noise
from nasa.steerable_denoiser import get_output_layer
from nasa.testing.tiny_pipelines import TINY_PIPELINES, tiny_pixart
from pipeline import models, recipe
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.evaluation.worker import load_student_sampler
from pipeline.storage import Folder

BFLOAT16_TOLERANCE = 0.1  # relative to the standard deviation of the images; guidance of 3 triples the rounding


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


@pytest.mark.parametrize("name", ["stable-diffusion", "pixart", "sana"])
def test_an_evaluation_in_bfloat16_is_near_float32(tmp_path, name):
    """Weights of denoisers and text encoders take half the memory; the output layer stays in float32."""
    TINY_PIPELINES[name]().save_pretrained(tmp_path)
    images = {}
    for precision in ("float32", "bfloat16"):
        options = recipe.parse("", [f"evaluation.precision={precision}"])
        teacher = Sampler(models.load_for_evaluation(options, tmp_path))
        student = load_student_sampler(teacher, Folder.from_uri(str(tmp_path)))
        images[precision] = [
            sampler.sample(sampling, ["a cat", "a dog"], [1, 2], ["red", "blue"])
            for sampler in (teacher, student)
            for sampling in (SamplingMethod(), SamplingMethod("nasa", 0.3), SamplingMethod("steps", 3.0, 3))
        ]
        expected = getattr(torch, precision)
        for denoiser in (teacher.denoiser.model, student.denoiser.model):
            layer = get_output_layer(denoiser, teacher.model.family)
            assert {p.dtype for p in layer.parameters()} == {torch.float32}
            kept = {id(p) for p in layer.parameters()}
            other = [p.dtype for p in denoiser.parameters() if id(p) not in kept]
            assert other.count(expected) > 0.9 * len(other)  # diffusers keeps some layers in float32
        encoders = models.list_text_encoders(teacher.model.pipe)
        for encoder in encoders:
            dtypes = [p.dtype for p in encoder.parameters()]
            assert dtypes.count(expected) > 0.8 * len(dtypes)  # transformers keeps some of T5's layers in float32
    for exact, reduced in zip(*images.values(), strict=True):
        assert reduced.dtype == torch.float32
        assert 0 < (exact - reduced).std() / exact.std() < BFLOAT16_TOLERANCE
