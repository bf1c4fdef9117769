"""NASA for diffusers' modular pipelines, as a guider: `pipe.update_components(guider=NasaGuidance(scale=0.3))`."""

from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, ClassVar

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor, nn

from nasa.prompt_embeds import pad_texts
from nasa.steer_context import steer

EMBEDS_NAMES = ("encoder_hidden_states", "prompt_embeds", "cap_feats")  # a prompt's embeddings in modular pipelines
MASK_NAMES = ("encoder_hidden_states_mask", "encoder_attention_mask")  # names of its attention mask


class NasaGuidance(BaseGuidance):
    """Steers the conditional prediction away from the pipeline's `negative_prompt` (eqs. 7-9), in one call.

    Without a `negative_prompt` the pipeline encodes the empty prompt, which is then the negative.

    Args:
        scale: alpha of eq. 9; 0 leaves the conditional prediction plain.
        rule: the attention rule, one of `nasa.attention_rules.RULES`.
        start: fraction of the denoising steps before which nothing is steered.
        stop: fraction of the denoising steps after which nothing is steered.
        enabled: False leaves the conditional prediction plain.
    """

    _input_predictions: ClassVar[list[str]] = ["pred_cond"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, scale: float = 0.3, rule: str = "nasa", start: float = 0.0, stop: float = 1.0, enabled: bool = True
    ) -> None:
        super().__init__(start, stop, enabled)
        self.scale, self.rule = scale, rule
        self._negative: Tensor | list[Tensor] | None = None
        self._negative_mask: Tensor | None = None
        self._block: AbstractContextManager[Any] | None = None

    def prepare_inputs(self, data: dict[str, tuple[Any, Any]]) -> list[Any]:
        """Return one batch with the positive prompt, and store the negative for the attention layers."""
        self._negative, self._negative_mask = (
            next((data[name][1] for name in names if name in data), None) for names in (EMBEDS_NAMES, MASK_NAMES)
        )
        return [self._prepare_batch(data, 0, "pred_cond")]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """Return one batch for a modular pipeline, as `prepare_inputs` does."""
        named = [[input_fields[name] for name in names if name in input_fields] for names in (EMBEDS_NAMES, MASK_NAMES)]
        self._negative, self._negative_mask = (
            getattr(data, names[0][1], None) if names and isinstance(names[0], tuple) else None for names in named
        )
        return [self._prepare_batch_from_block_state(input_fields, data, 0, "pred_cond")]

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Steer the denoiser for this step."""
        super().prepare_models(denoiser)
        if not self._is_active():
            return
        pipe = SimpleNamespace(transformer=denoiser, scheduler=SimpleNamespace(timesteps=[0]))
        if isinstance(self._negative, list):  # Z-Image's, each of its own length
            padded = pad_texts(self._negative)
            self._negative, self._negative_mask = padded.embeds, padded.attention_mask
        self._block = steer(
            pipe,
            scale=self.scale,
            rule=self.rule,
            negative_prompt_embeds=self._negative,
            negative_attention_mask=self._negative_mask,
            conditional=slice(None),
        )
        self._block.__enter__()

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Restore the denoiser."""
        if self._block is not None:
            self._block.__exit__(None, None, None)
            self._block = None
        super().cleanup_models(denoiser)

    def __call__(self, data: list[Any]) -> Any:
        """Return the conditional prediction."""
        (batch,) = data
        return self.forward(batch.noise_pred)

    def forward(self, pred_cond: Tensor) -> GuiderOutput:
        """Return the conditional prediction, which the attention layers have steered."""
        return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=None)

    @property
    def is_conditional(self) -> bool:
        """Return True: every prediction is conditional."""
        return True

    @property
    def num_conditions(self) -> int:
        """Two, so that the pipeline encodes the negative prompt too."""
        return 2 if self._enabled and self.scale else 1

    def _is_active(self) -> bool:
        if not self._enabled or not self.scale or self._negative is None:
            return False
        steps = self._num_inference_steps
        return steps is None or int(self._start * steps) <= self._step < int(self._stop * steps)
