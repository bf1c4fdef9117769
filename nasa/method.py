"""The choices that make a distillation NASA-T, SBv2* or an ablation between them; plain data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """The parts that get the negative prompt (the rows of the paper's Table 5), and what is sampled each step.

    Attributes:
        negative_on_student: the student's cross-attention is steered (NASA).
        negative_on_teacher: the frozen teacher is guided away from the negative (eq. 5), not from the null text.
        negative_on_lora_teacher: the LoRA teacher likewise.
        guidance_range: k of eqs. 4 and 5; two equal numbers fix it.
        scale_range: alpha of eq. 9; two equal numbers fix it.
        lora_guidance: whether the LoRA teacher is guided by k too, or predicts from the prompt alone.
        vsd_weighting: w(t) of eq. 6: sigma_t^2 (SwiftBrush), or DMD's, which divides by the teacher's mean error.
        start_timestep: where the one step starts; -1 is the last, T - 1.
        null_text_probability: how often the LoRA teacher learns the null text.
        null_text_per: whether that is drawn for the whole batch (SwiftBrush) or for each image.
        lora_shares_pass: the LoRA teacher learns from the noised images and the pass of eq. 6, and has none of its
            own. Not the paper's: one forward pass less, timesteps of eq. 6, and the same noise.
        negative_per: whether each image has a negative of its own, or the batch has one.
    """

    negative_on_student: bool = True
    negative_on_teacher: bool = True
    negative_on_lora_teacher: bool = False
    guidance_range: tuple[float, float] = (0.5, 4.0)
    scale_range: tuple[float, float] = (0.0, 1.0)
    lora_guidance: bool = True
    vsd_weighting: Literal["sigma_squared", "dmd"] = "sigma_squared"
    start_timestep: int = -1
    null_text_probability: float = 0.1
    null_text_per: Literal["batch", "image"] = "batch"
    lora_shares_pass: bool = False
    negative_per: Literal["image", "batch"] = "image"

    def __post_init__(self) -> None:
        for name in ("guidance_range", "scale_range"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name}: got {[low, high]}; expected two numbers, 0 <= low <= high.")
        if not 0 <= self.null_text_probability <= 1:
            raise ValueError(f"null_text_probability: got {self.null_text_probability}; expected 0 to 1.")
        if self.lora_shares_pass and (self.negative_on_lora_teacher or not self.lora_guidance):
            raise ValueError(
                "lora_shares_pass: got True; expected False unless lora_guidance is True and negative_on_lora_teacher "
                "is False."
            )
