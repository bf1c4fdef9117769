"""Detection of a diverged training: NaN or inf metrics, exploding gradients, mode collapse."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

WINDOW = 50  # recent gradient norms that the next one is compared with
MIN_NORMS = 10  # norms before a gradient can count as exploding


class DivergedError(Exception):
    """The training diverged: step, metric and bound."""


@dataclass
class DivergenceDetector:
    """Detects NaN or inf metrics, exploding gradients and mode collapse, identically on every rank.

    `max_grad_norm_ratio` bounds a gradient norm relative to the median of the latest ones, `min_image_std_ratio` the
    standard deviation of the images relative to that of the first step.
    """

    max_grad_norm_ratio: float
    min_image_std_ratio: float
    _norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _first_variation: float | None = None

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Check the metrics of a step.

        Raises:
            DivergedError: if they show that the training diverged.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergedError(f"step {step + 1}: {name} is {value}")
        norm, variation = metrics["gradient_norm_student"], metrics["image_variation"]
        if len(self._norms) >= MIN_NORMS and norm > self.max_grad_norm_ratio * median(self._norms):
            raise DivergedError(
                f"step {step + 1}: gradient_norm_student is {norm:.3g}, more than {self.max_grad_norm_ratio:g} times "
                f"its median {median(self._norms):.3g}"
            )
        if norm:  # no gradient: only the LoRA teacher was trained
            self._norms.append(norm)
        if self._first_variation is None:
            self._first_variation = variation
        if variation < self.min_image_std_ratio * self._first_variation:
            raise DivergedError(
                f"step {step + 1}: image_variation is {variation:.3g}, less than {self.min_image_std_ratio:.0%} of its "
                f"first {self._first_variation:.3g}: the images are all alike"
            )
