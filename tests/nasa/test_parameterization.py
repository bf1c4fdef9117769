import pytest
import torch
from diffusers import DDIMScheduler

from nasa.diffusion_process import DiffusionProcess
from nasa.parameterization import (
    PREDICTION_TYPES,
    add_noise,
    alpha_sigma,
    prediction_target,
    to_eps,
    to_x0,
)

FLOAT64_TOLERANCE = 1e-12
ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)


@pytest.fixture
def noised():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 3, 5, 5, generator=generator, dtype=torch.float64)
    alpha, sigma = alpha_sigma(ALPHAS_CUMPROD, torch.tensor([0, 300, 700, 999]))
    return x0, eps, alpha, sigma


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_output_gives_x0_and_eps(noised, prediction_type):
    x0, eps, alpha, sigma = noised
    if prediction_type == "flow":
        alpha = 1 - sigma
    x_t = add_noise(x0, eps, alpha, sigma)
    output = prediction_target(x0, eps, alpha, sigma, prediction_type)
    for convert, expected in ((to_x0, x0), (to_eps, eps)):
        actual = convert(output, x_t, alpha, sigma, prediction_type)
        torch.testing.assert_close(actual, expected, atol=FLOAT64_TOLERANCE, rtol=0)


def test_targets_follow_their_definitions(noised):
    x0, eps, alpha, sigma = noised
    assert torch.equal(prediction_target(x0, eps, alpha, sigma, "epsilon"), eps)
    assert torch.equal(prediction_target(x0, eps, alpha, sigma, "sample"), x0)
    torch.testing.assert_close(prediction_target(x0, eps, alpha, sigma, "v_prediction"), alpha * eps - sigma * x0)


def test_alpha_and_sigma_have_one_value_per_sample():
    alpha, sigma = alpha_sigma(ALPHAS_CUMPROD, torch.tensor([3, 900]))
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
    torch.testing.assert_close(alpha.flatten() ** 2, ALPHAS_CUMPROD[[3, 900]])
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@pytest.mark.parametrize("start", [-2, 1000])
def test_a_start_outside_the_schedule_is_named(start):
    with pytest.raises(ValueError, match=f"start_timestep: got {start}; expected 0 to 999, or -1"):
        DiffusionProcess.from_alphas_cumprod(ALPHAS_CUMPROD, "epsilon", start)


def test_an_epsilon_model_cannot_start_without_any_signal():
    """Schedules with zero terminal SNR (arXiv 2305.08891) end at alpha 0, or 2**-24 in some libraries."""
    schedule = DDIMScheduler(rescale_betas_zero_snr=True, beta_schedule="scaled_linear").alphas_cumprod
    almost = schedule.clone()
    almost[-1] = 2**-24
    for alphas_cumprod in (schedule, almost):
        with pytest.raises(ValueError, match=r"start_timestep: got -1, where alpha is .*Choose an earlier timestep"):
            DiffusionProcess.from_alphas_cumprod(alphas_cumprod, "epsilon")
        DiffusionProcess.from_alphas_cumprod(alphas_cumprod, "epsilon", 900)
        DiffusionProcess.from_alphas_cumprod(alphas_cumprod, "v_prediction")
        DiffusionProcess.from_alphas_cumprod(alphas_cumprod, "sample")


@pytest.mark.parametrize("convert", [prediction_target, to_x0, to_eps])
def test_an_unknown_type_is_named(noised, convert):
    with pytest.raises(ValueError, match="prediction_type: got 'score'; expected epsilon, v_prediction, sample, flow"):
        convert(*noised, "score")


def test_diffusion_rejects_an_unknown_type():
    with pytest.raises(ValueError, match="prediction_type: got 'score'; expected epsilon"):
        DiffusionProcess.from_alphas_cumprod(ALPHAS_CUMPROD, "score")
