"""The choices that make a distillation NASA-T, SBv2* or an ablation between them; plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """Where the negative prompt goes (the rows of the paper's Table 5) and what is drawn each step."""

    negative_on_student: bool = True
    negative_on_teacher: bool = True
    negative_on_lora_teacher: bool = False
    guidance_range: tuple[float, float] = (0.5, 4.0)
    scale_range: tuple[float, float] = (0.0, 1.0)
    null_text_probability: float = 0.1
