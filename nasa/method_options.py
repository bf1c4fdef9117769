"""The options that distinguish NASA-T, SBv2* and the ablations between them."""

from dataclasses import dataclass
from typing import Literal

MAX_STUDENT_STEPS, MAX_LORA_UPDATES = 8, 20


@dataclass(frozen=True)
class MethodOptions:
    """The parts that get the negative prompt (the rows of the paper's Table 5), and the values sampled per step.

    Attributes:
        negative_on_student: whether the student's cross-attention is steered (NASA).
        negative_on_teacher: whether the frozen teacher is guided by the negative (eq. 5) instead of the null text.
        negative_on_lora_teacher: whether the LoRA teacher is guided by the negative prompt too.
        guidance_range: range of k in eqs. 4 and 5; two equal numbers fix it.
        final_guidance_range: range of k at the end of training, approached linearly; empty keeps `guidance_range`.
        scale_range: range of alpha in eq. 9; two equal numbers fix it.
        lora_guidance: whether the LoRA teacher is guided by k too; otherwise it predicts from the prompt only.
        vsd_weighting: w(t) of eq. 6: sigma_t^2 (SwiftBrush), or DMD's, which divides by the teacher's mean error.
        vsd_distance: distance of the student's image to eq. 6's target: half the mean squared error, whose gradient is
            eq. 6, or pseudo-Huber, which gives every image a gradient of the same length (TDM, arXiv 2503.06674), so
            that `vsd_weighting` has no effect.
        cold_start_steps: first steps of eq. 6 with DMDR's cold start (arXiv 2511.13649); 0: none. The frozen teacher
            has the LoRA teacher's adapters with a weight that falls linearly from 1 to 0, and only the noisiest
            timesteps are used at first, at last all.
        start_timestep: timestep at which the student starts; -1 is the last, T - 1.
        student_steps: steps in which the student makes an image, 1 to 8; each training step trains one of them, on the
            image of the student's own earlier steps (DMD2's backward simulation).
        null_text_probability: probability that the LoRA teacher learns the null text.
        null_text_per: whether the null text is sampled per batch (SwiftBrush) or per image.
        lora_shares_pass: whether the LoRA teacher learns from the forward pass of eq. 6 instead of a separate one.
            This differs from the paper: it saves a pass, but uses the timesteps and the noise of eq. 6.
        lora_updates: updates of the LoRA teacher per update of the student (DMD2: 5), on the same images with other
            timesteps and noise.
        lora_loss_weighting: weight of the LoRA teacher's loss: alpha_t^2 (SwiftBrush), or 1 at all timesteps, for flow
            matching, whose alpha_T is 0.
        negative_per: whether a negative is sampled per image or per batch.
    """

    negative_on_student: bool = True
    negative_on_teacher: bool = True
    negative_on_lora_teacher: bool = False
    guidance_range: tuple[float, float] = (0.5, 4.0)
    final_guidance_range: tuple[float, ...] = ()
    scale_range: tuple[float, float] = (0.0, 1.0)
    lora_guidance: bool = True
    vsd_weighting: Literal["sigma_squared", "dmd"] = "sigma_squared"
    vsd_distance: Literal["squared", "pseudo_huber"] = "squared"
    cold_start_steps: int = 0
    start_timestep: int = -1
    student_steps: int = 1
    null_text_probability: float = 0.1
    null_text_per: Literal["batch", "image"] = "batch"
    lora_shares_pass: bool = False
    lora_updates: int = 1
    lora_loss_weighting: Literal["alpha_squared", "uniform"] = "alpha_squared"
    negative_per: Literal["image", "batch"] = "image"

    def __post_init__(self) -> None:
        for name in ("guidance_range", "scale_range", *(["final_guidance_range"] if self.final_guidance_range else [])):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 <= limits[0] <= limits[1]:
                raise ValueError(f"{name}: got {[*limits]}; expected two numbers, 0 <= low <= high.")
        if not 0 <= self.null_text_probability <= 1:
            raise ValueError(f"null_text_probability: got {self.null_text_probability}; expected 0 to 1.")
        if not 1 <= self.student_steps <= MAX_STUDENT_STEPS:
            raise ValueError(f"student_steps: got {self.student_steps}; expected 1 to {MAX_STUDENT_STEPS}.")
        if self.cold_start_steps < 0:
            raise ValueError(f"cold_start_steps: got {self.cold_start_steps}; expected 0 or more.")
        if not 1 <= self.lora_updates <= MAX_LORA_UPDATES:
            raise ValueError(f"lora_updates: got {self.lora_updates}; expected 1 to {MAX_LORA_UPDATES}.")
        if self.lora_shares_pass and (self.negative_on_lora_teacher or not self.lora_guidance or self.lora_updates > 1):
            raise ValueError(
                "lora_shares_pass: got True; expected False unless lora_guidance is True, negative_on_lora_teacher "
                "is False and lora_updates is 1."
            )

    def get_guidance_range(self, progress: float) -> tuple[float, float]:
        """Return the range of k at a share of training, 0 at its first step; after the end it stays."""
        progress = min(1.0, progress)
        if not self.final_guidance_range:
            return self.guidance_range
        low, high = (
            first + (last - first) * progress
            for first, last in zip(self.guidance_range, self.final_guidance_range, strict=True)
        )
        return low, high

    def get_cold_start(self, step: int) -> float:
        """Return what is left of the cold start at a step of eq. 6: 1 at the first, 0 after the last of its steps."""
        return min(1.0, max(0.0, 1 - step / self.cold_start_steps)) if self.cold_start_steps else 0.0
