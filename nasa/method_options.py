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
        scale_range: range of alpha in eq. 9; two equal numbers fix it.
        lora_guidance: whether the LoRA teacher is guided by k too; otherwise it predicts from the prompt only.
        vsd_weighting: w(t) of eq. 6: sigma_t^2 (SwiftBrush), or DMD's, which divides by the teacher's mean error.
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
    scale_range: tuple[float, float] = (0.0, 1.0)
    lora_guidance: bool = True
    vsd_weighting: Literal["sigma_squared", "dmd"] = "sigma_squared"
    start_timestep: int = -1
    student_steps: int = 1
    null_text_probability: float = 0.1
    null_text_per: Literal["batch", "image"] = "batch"
    lora_shares_pass: bool = False
    lora_updates: int = 1
    lora_loss_weighting: Literal["alpha_squared", "uniform"] = "alpha_squared"
    negative_per: Literal["image", "batch"] = "image"

    def __post_init__(self) -> None:
        for name in ("guidance_range", "scale_range"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name}: got {[low, high]}; expected two numbers, 0 <= low <= high.")
        if not 0 <= self.null_text_probability <= 1:
            raise ValueError(f"null_text_probability: got {self.null_text_probability}; expected 0 to 1.")
        if not 1 <= self.student_steps <= MAX_STUDENT_STEPS:
            raise ValueError(f"student_steps: got {self.student_steps}; expected 1 to {MAX_STUDENT_STEPS}.")
        if not 1 <= self.lora_updates <= MAX_LORA_UPDATES:
            raise ValueError(f"lora_updates: got {self.lora_updates}; expected 1 to {MAX_LORA_UPDATES}.")
        if self.lora_shares_pass and (self.negative_on_lora_teacher or not self.lora_guidance or self.lora_updates > 1):
            raise ValueError(
                "lora_shares_pass: got True; expected False unless lora_guidance is True, negative_on_lora_teacher "
                "is False and lora_updates is 1."
            )
