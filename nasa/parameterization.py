"""Noising, and conversions of what denoisers predict: `x_t = alpha_t x0 + sigma_t eps`.

B batch; `alpha` and `sigma` have a shape that broadcasts with latents [B, C, H, W] or, of videos, [B, C, F, H, W].
"""

from typing import Literal, get_args

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


def alpha_sigma(alphas_cumprod: Tensor, timestep_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return `alpha_t = sqrt(abar_t)` and `sigma_t = sqrt(1 - abar_t)`, [B, 1, 1, 1] in `alphas_cumprod`'s dtype."""
    abar = alphas_cumprod[timestep_B].reshape(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


def add_noise(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return `x_t = alpha_t x0 + sigma_t eps`."""
    return alpha * x0 + sigma * eps


def prediction_target(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """Return the training target of a denoiser's output.

    It is eps, x0, `v = alpha_t eps - sigma_t x0`, or the velocity of flow matching, `eps - x0`.
    """
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x0
    if prediction_type == "flow":
        return eps - x0
    _check_v_prediction(prediction_type)
    return alpha * eps - sigma * x0


def to_x0(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """Convert a denoiser's output to the predicted x0; only "epsilon" divides by alpha_t."""
    if prediction_type == "epsilon":
        return (x_t - sigma * output) / alpha
    if prediction_type == "sample":
        return output
    if prediction_type == "flow":
        return x_t - sigma * output
    _check_v_prediction(prediction_type)
    return alpha * x_t - sigma * output


def to_eps(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """Convert a denoiser's output to the predicted noise; only "sample" divides by sigma_t."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "sample":
        return (x_t - alpha * output) / sigma
    if prediction_type == "flow":
        return x_t + alpha * output
    _check_v_prediction(prediction_type)
    return alpha * output + sigma * x_t


def _check_v_prediction(prediction_type: str) -> None:
    if prediction_type != "v_prediction":
        allowed = ", ".join(PREDICTION_TYPES)
        raise ValueError(f"prediction_type: got {prediction_type!r}; expected {allowed}.")
