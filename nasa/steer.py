"""`steer`: a negative prompt for the duration of a `with` block, on a diffusers pipeline."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nasa.attention import Steering, install
from nasa.rules import RULES, Scale


@contextmanager
def steer(
    pipe: Any,
    negative_prompt: str | Sequence[str] | None = None,
    scale: float | Sequence[float] | Tensor = 0.3,
    *,
    method: str = "nasa",
    negative_prompt_embeds: Tensor | None = None,
    negative_attention_mask: Tensor | None = None,
) -> Iterator[Any]:
    """Steer a pipeline's cross-attention away from a negative prompt (NASA-I, eqs. 7-9).

    Args:
        pipe: a diffusers pipeline with a `unet` (Stable Diffusion 1.x and 2.x).
        negative_prompt: one for all images or one for each; None leaves the pipeline plain, and the
            empty string is an ordinary negative.
        scale: alpha of eq. 9, one number or one for each image; 0 is plain.
        method: the attention rule, one of `nasa.rules.RULES`.
        negative_prompt_embeds: [N, T, D] in place of `negative_prompt`.
        negative_attention_mask: [N, T], True where a token of the embeddings counts.

    On leaving, also by an exception, the processors that stood there stand there again.

    Raises:
        ValueError: for a pipeline without cross-attention, an unknown method, or a negative prompt
            that no layer used.
    """
    if method not in RULES:
        raise ValueError(f"method: {method!r} is not known; allowed: {', '.join(RULES)}")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("negative_prompt and negative_prompt_embeds: give one of the two")
    model: Any = getattr(pipe, "unet", None)
    if model is None:
        raise ValueError(f"{type(pipe).__name__} has no unet; nasa.steer supports Stable Diffusion UNet pipelines")
    if negative_prompt is not None:
        negative_prompt_embeds = _encode(pipe, negative_prompt)
    steering = Steering(
        embeds_NTD=negative_prompt_embeds,
        mask_NT=negative_attention_mask,
        scale=_as_scale(scale),
        rule=RULES[method],
        guided=lambda: bool(pipe.do_classifier_free_guidance),
    )
    before = install(model, steering)
    forwards: list[None] = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(None))
    try:
        yield pipe
    finally:
        model.set_attn_processor(before)
        hook.remove()
    if forwards and not steering.plain and not steering.calls:
        raise ValueError("negative_prompt: no attention layer used it")


@torch.no_grad()
def _encode(pipe: Any, negative_prompt: str | Sequence[str]) -> Tensor:
    prompts = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
    embeds: Tensor = pipe.encode_prompt(
        prompts, device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    return embeds


def _as_scale(scale: float | Sequence[float] | Tensor) -> Scale:
    if isinstance(scale, Tensor | int | float):
        return scale
    return torch.tensor(list(scale))
