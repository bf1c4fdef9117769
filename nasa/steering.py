"""`steer`: a negative prompt for the duration of a `with` block, on a diffusers pipeline."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nasa.attention import SteeredAttnProcessor, Steering, install, per_image
from nasa.backbones import Backbone, backbone_of
from nasa.backbones.base import unconditional_calls
from nasa.joint import READINGS, JointSteering, install_joint
from nasa.rules import RULES, Rule, Scale


@contextmanager
def steer(
    pipe: Any,
    negative_prompt: str | Sequence[str] | None = None,
    scale: float | Sequence[float] | Tensor = 0.3,
    *,
    method: str = "nasa",
    negative_prompt_embeds: Tensor | None = None,
    negative_attention_mask: Tensor | None = None,
    layers: Callable[[str], bool] = lambda _: True,
    steps: Container[int] | None = None,
    max_sequence_length: int | None = None,
    reading: str = "text",
    **rule_options: float,
) -> Iterator[Any]:
    """Steer a pipeline's cross-attention away from a negative prompt (NASA-I, eqs. 7-9).

    Args:
        pipe: a diffusers pipeline of one of the families in `nasa.backbones`.
        negative_prompt: one for all images or one for each; None leaves the pipeline plain, and the
            empty string is an ordinary negative.
        scale: alpha of eq. 9, one number or one for each image; 0 is plain.
        method: the attention rule, one of `nasa.rules.RULES`.
        negative_prompt_embeds: [N, T, D] in place of `negative_prompt`, as the denoiser takes them.
        negative_attention_mask: [N, T], True where a token of the embeddings counts.
        layers: whether to steer the layer of this processor name (a key of `attn_processors`).
        steps: the denoising steps to steer, counted from 0, as a range or a set; None is all.
        max_sequence_length: tokens of the negative, where the pipeline's call was given this option too.
        reading: for joint attention (FLUX, Stable Diffusion 3, Qwen-Image), what Z- is: the image's attention to the
            negative's tokens alone, "text", or to them and the image, "joint".
        rule_options: options of the rule, as `tau` and `blend` of "nag".

    Under classifier-free guidance only the conditional half is steered. K- and V- are computed once for the
    block, so the weights must not be changed inside it. On leaving, also by an exception, the processors that
    stood there stand there again.

    Raises:
        ValueError: for a pipeline that cannot be steered, an unknown method or option, or a negative prompt
            that no layer used.
    """
    rule = _rule(method, rule_options)
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("negative_prompt and negative_prompt_embeds: give one of the two")
    backbone, model = backbone_of(pipe)
    if negative_prompt is not None:
        negative_prompt_embeds, negative_attention_mask = _encode(backbone, pipe, negative_prompt, max_sequence_length)
    if backbone.extend and not backbone.masked and negative_attention_mask is not None:
        raise ValueError("negative_attention_mask: this joint attention has no mask; allowed: None")
    with backbone.guidance(pipe) as guided, _unconditional(backbone, model) as unconditional:
        steering = _steering(backbone, reading)(
            mask_NT=negative_attention_mask,
            scale=_as_scale(scale),
            rule=rule,
            guided=(lambda: False) if backbone.guidance_in_calls else guided,
        )
        before = _install(backbone, model, steering, layers)
        calls = _Calls(pipe, backbone, steering, negative_prompt_embeds, unconditional, steps)
        hook = model.register_forward_pre_hook(calls, with_kwargs=True)
        try:
            yield pipe
        finally:
            hook.remove()
            model.set_attn_processor(before)
    if calls.steered and not steering.used:
        raise ValueError("negative_prompt: no attention layer used it")


def _steering(backbone: Backbone, reading: str) -> Callable[..., Any]:
    if reading not in READINGS:
        raise ValueError(f"reading: {reading!r} is not known; allowed: {', '.join(READINGS)}")
    return partial(JointSteering, reading=reading) if backbone.extend else Steering


@contextmanager
def _unconditional(backbone: Backbone, model: Any) -> Iterator[Callable[[], bool]]:
    if not backbone.guidance_in_calls:
        yield lambda: False
        return
    with unconditional_calls(model) as unconditional:
        yield unconditional


def _install(backbone: Backbone, model: Any, steering: Any, layers: Callable[[str], bool]) -> dict[str, Any]:
    if backbone.extend:
        return install_joint(model, steering, layers)
    return install(model, steering, layers=layers, norm_across_heads=backbone.norm_across_heads)


class _Calls:
    """Before each call of the denoiser: give it the negative, and say whether this call is steered."""

    def __init__(
        self,
        pipe: Any,
        backbone: Backbone,
        steering: Any,
        embeds: Tensor | None,
        unconditional: Callable[[], bool],
        steps: Container[int] | None,
    ) -> None:
        self._pipe, self._backbone, self._steering = pipe, backbone, steering
        self._embeds, self._unconditional, self._steps = embeds, unconditional, steps
        self._count = 0
        self.steered = False

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._embeds is not None and self._steering.embeds_NTD is None:
            latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._prepare(model, self._embeds.to(latents))
        self._steering.active = not self._unconditional() and self._is_chosen_step()
        if self._steering.plain:
            return None
        self.steered = True
        if self._backbone.extend is None:
            return None
        return args, {**kwargs, **self._extend(kwargs)}

    def _is_chosen_step(self) -> bool:
        steps = getattr(self._pipe, "num_timesteps", 0) or len(self._pipe.scheduler.timesteps)
        step = self._count % steps
        self._count += 1
        return self._steps is None or step in self._steps

    def _extend(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Where the batch is [unconditional; conditional] the first half gets the tokens too, and is not steered."""
        assert self._backbone.extend is not None
        positive = kwargs["encoder_hidden_states"]
        halves = 2 if self._steering.guided() else 1
        images = len(positive) // halves

        def for_each(part: Tensor) -> Tensor:
            return torch.cat([per_image(part, images)] * halves)

        text, mask = for_each(self._steering.embeds_NTD), self._steering.mask_NT
        self._steering.positive_tokens = positive.shape[1]
        return self._backbone.extend(kwargs, text.to(positive), None if mask is None else for_each(mask))

    @torch.no_grad()
    def _prepare(self, model: Any, embeds: Tensor) -> None:
        """The text as the layers see it, and K- and V- of each layer with cross-attention, once for the block.

        An offloaded model comes to the device first; a layer whose weights stay away computes its keys in each call.
        """
        offloaded = getattr(model, "_hf_hook", None)
        if offloaded is not None:
            offloaded.pre_forward(model)
        text = self._backbone.project(model, embeds)
        self._steering.embeds_NTD = text
        if isinstance(self._steering.scale, Tensor):
            self._steering.scale = self._steering.scale.to(text)
        for module in model.modules():
            processor = getattr(module, "processor", None)
            if isinstance(processor, SteeredAttnProcessor) and next(module.parameters()).device == text.device:
                processor.negative_keys = processor.keys(module, text)


def _rule(method: str, options: dict[str, float]) -> Rule:
    if method not in RULES:
        raise ValueError(f"method: {method!r} is not known; allowed: {', '.join(RULES)}")
    rule = RULES[method]
    known = getattr(rule.combine, "__kwdefaults__", None) or {}
    for name in options:
        if name not in known:
            raise ValueError(f"{name}: no option of {method!r}; allowed: {', '.join(known) or 'none'}")
    return replace(rule, combine=partial(rule.combine, **options)) if options else rule


@torch.no_grad()
def _encode(
    backbone: Backbone, pipe: Any, negative_prompt: str | Sequence[str], max_sequence_length: int | None
) -> tuple[Tensor, Tensor | None]:
    prompts = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
    return backbone.encode(pipe, prompts, max_sequence_length)


def _as_scale(scale: float | Sequence[float] | Tensor) -> Scale:
    """A tensor, so that another scale is no other program for `torch.compile`; 0 stays a number, which is plain."""
    if isinstance(scale, int | float):
        return torch.tensor([float(scale)]) if scale else 0.0
    return scale if isinstance(scale, Tensor) else torch.tensor(list(scale))
