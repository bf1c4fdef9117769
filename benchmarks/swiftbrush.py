"""SwiftBrush's training step (arXiv 2312.05239), the baseline of this project's.

It follows the paper's algorithm, with NASA-T's switches. The frozen teacher and the LoRA teacher are two models; each
is called once for the prompt and once for the text that it is guided away from. Nothing is fused or compiled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasa.diffusion_process import DiffusionProcess
from nasa.distillation import StepRandomness, TextConditions
from nasa.lora import get_lora_parameters
from nasa.method_options import MethodOptions
from nasa.prompt_embeds import PromptEmbeds


class SwiftBrush:
    """One training; the denoisers predict v or eps, and `learning_rates` are the student's and the LoRA teacher's."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        lora_teacher: nn.Module,
        diffusion: DiffusionProcess,
        method: MethodOptions,
        learning_rates: Sequence[float],
        max_grad_norm: float = 1.0,
    ) -> None:
        self.student, self.teacher, self.lora_teacher = student, teacher, lora_teacher
        self.abar, self.predicts_v = diffusion.alphas**2, diffusion.prediction_type == "v_prediction"
        self.method, self.max_grad_norm = method, max_grad_norm
        trained = ([p for p in student.parameters() if p.requires_grad], get_lora_parameters(lora_teacher))
        self.optimizers = [
            torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.999), weight_decay=0.0)
            for parameters, rate in zip(trained, learning_rates, strict=True)
        ]

    def step(self, texts: TextConditions, randomness: StepRandomness) -> dict[str, Tensor]:
        x0 = self._generate(texts, randomness)
        loss = 0.5 * F.mse_loss(x0, (x0 - self._gradient(texts, randomness, x0.detach())).detach())
        self._update(0, loss, self.student)
        lora_loss = self._lora_loss(texts, randomness, x0.detach())
        self._update(1, lora_loss, self.lora_teacher)
        return {"loss_student": loss.detach(), "loss_lora_teacher": lora_loss.detach()}

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.abar[t].sqrt()[:, None, None, None], (1 - self.abar[t]).sqrt()[:, None, None, None]

    def _generate(self, texts: TextConditions, randomness: StepRandomness) -> Tensor:
        t = torch.full((len(randomness.noise),), len(self.abar) - 1, device=self.abar.device)
        alpha, sigma = self._alpha_sigma(t)
        negatives = texts.negatives if self.method.negative_on_student else None
        output = self.student(randomness.noise, t, texts.prompts, negatives, randomness.scale)
        if self.predicts_v:
            return alpha * randomness.noise - sigma * output
        return (randomness.noise - sigma * output) / alpha

    @torch.no_grad()
    def _gradient(self, texts: TextConditions, randomness: StepRandomness, x0: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(randomness.vsd_timestep_B)
        x_t = alpha * x0 + sigma * randomness.vsd_eps

        def eps(model: Callable[..., Tensor], text: PromptEmbeds) -> Tensor:
            output = model(x_t, randomness.vsd_timestep_B, text.expand(len(x_t)))
            return alpha * output + sigma * x_t if self.predicts_v else output

        k, method = randomness.guidance_scale, self.method
        negatives = texts.negatives if method.negative_on_teacher else texts.null
        psi = (1 - k) * eps(self.teacher, negatives) + k * eps(self.teacher, texts.prompts)
        negatives = texts.negatives if method.negative_on_lora_teacher else texts.null
        pi = (1 - k) * eps(self.lora_teacher, negatives) + k * eps(self.lora_teacher, texts.prompts)
        return sigma**2 * (psi - pi)

    def _lora_loss(self, texts: TextConditions, randomness: StepRandomness, x0: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(randomness.lora_timestep_B)
        text = texts.null.expand(len(x0)) if randomness.null_text_B[0] else texts.prompts
        output = self.lora_teacher(alpha * x0 + sigma * randomness.lora_eps, randomness.lora_timestep_B, text)
        target = alpha * randomness.lora_eps - sigma * x0 if self.predicts_v else randomness.lora_eps
        return (alpha**2 * (output - target) ** 2).mean()

    def _update(self, index: int, loss: Tensor, model: Any) -> None:
        self.optimizers[index].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], self.max_grad_norm)
        self.optimizers[index].step()
