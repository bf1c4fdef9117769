"""Muon (Jordan et al., 2024): momentum whose matrix is replaced by the nearest orthogonal one.

With AdamW the small models here stay on a plateau several times longer. `torch.optim.Muon` takes
two-dimensional parameters alone and computes in bfloat16, which processors without it emulate.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAMW_RMS = 0.2  # an update has the root mean square of a typical AdamW step, so learning rates carry over


class Muon(torch.optim.Optimizer):
    """Optimizer for weights of two or more dimensions; all but the first are flattened into one."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: Tensor | float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the weights."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"])

    def _update(self, parameter: Tensor, gradient: Tensor, lr: Tensor | float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalize(gradient.lerp(momentum, MOMENTUM).flatten(1))
        parameter.sub_(update.view_as(parameter) * (lr * ADAMW_RMS * max(update.shape) ** 0.5))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix with orthonormal rows or columns, by a Newton-Schulz iteration of degree 5."""
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix / (matrix.norm() + 1e-7)
    x = x if wide else x.T
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide else x.T
    return result
