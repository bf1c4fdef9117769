"""`steer`, a context manager that adds a negative prompt to a diffusers pipeline."""

import inspect
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nasa.attention_rules import RULES, Rule, Scale
from nasa.batch_layouts import Conditional, find_layout
from nasa.families import find_family, get_denoisers
from nasa.joint_attention import JOINT_ATTENTION_MODES
from nasa.negative_prompt import NegativePrompt, Prompts
from nasa.pipeline_call_tracker import PipelineCallTracker, find_encoder_method
from nasa.processor_installation import create_steering
from nasa.steering_hooks import SteeredDenoiser


@contextmanager
def steer(  # noqa: PLR0913
    pipe: Any,
    negative_prompt: str | Sequence[str] | None = None,
    scale: float | Sequence[float] | Tensor = 0.3,
    *,
    rule: str = "nasa",
    negative_prompt_2: str | Sequence[str] | None = None,
    negative_prompt_3: str | Sequence[str] | None = None,
    negative_prompt_embeds: Tensor | None = None,
    negative_attention_mask: Tensor | None = None,
    layers: Callable[[str], bool] = lambda _: True,
    steps: Container[int] | None = None,
    max_sequence_length: int | None = None,
    joint_attention: str = "text",
    conditional: Conditional | None = None,
    **rule_options: float,
) -> Iterator[Any]:
    """Steer a pipeline's cross-attention away from a negative prompt (NASA-I, eqs. 7-9), inside a `with` block.

    Args:
        pipe: a diffusers pipeline of one of the families in `nasa.families`.
        negative_prompt: one for all images or one per image; None is plain, the empty string is an ordinary negative.
        scale: alpha of eq. 9, at least 0, one number or one per image; 0 leaves the pipeline plain.
        rule: the attention rule, one of `nasa.attention_rules.RULES`.
        negative_prompt_2: the negative for a second text encoder; None means `negative_prompt`.
        negative_prompt_3: the negative for a third text encoder; None means `negative_prompt`.
        negative_prompt_embeds: [N, T, D] in place of `negative_prompt`, as the denoiser takes them.
        negative_attention_mask: [N, T], True for tokens of the embeddings that count.
        layers: tells whether to steer the layer of a processor name (a key of `attn_processors`).
        steps: the denoising steps to steer, counted from 0, as a range or a set; None means all.
        max_sequence_length: tokens of the negative; None means that of the pipeline's call.
        joint_attention: in joint attention, Z- sees the negative's tokens, "text", or also the image, "joint".
        conditional: the rows of the denoiser's batch that belong to the positive prompt, for a pipeline outside
            `nasa.batch_layouts.PIPELINES`: a slice, row numbers, or a function of batch size and call within the step.
        rule_options: options of the rule, such as `tau` and `blend` of "nag".

    Under guidance only the conditional rows are steered. The negative is encoded with the options that the pipeline's
    call uses for its own prompt. On exit, also after an exception, the original processors are restored.

    Raises:
        ValueError: The pipeline cannot be steered or is steered already, the rule or an option is unknown, a step does
            not exist, or no layer used the negative prompt.
    """
    attention_rule = _configure_rule(rule, rule_options)
    family, _ = find_family(pipe)
    layout = find_layout(pipe, conditional)
    checked_scale = _to_scale(scale)
    texts = _collect_texts(pipe, (negative_prompt, negative_prompt_2, negative_prompt_3))
    negative = NegativePrompt(pipe, family, texts, max_sequence_length, negative_prompt_embeds, negative_attention_mask)
    _check_negative(negative)
    calls = PipelineCallTracker(pipe, negative.encode_for_call, any_caller=conditional is not None)
    if joint_attention not in JOINT_ATTENTION_MODES:
        raise ValueError(f"joint_attention: got {joint_attention!r}; expected {' or '.join(JOINT_ATTENTION_MODES)}.")
    build = partial(create_steering, family, joint_attention, scale=checked_scale, rule=attention_rule)
    if isinstance(checked_scale, float):  # 0: plain, nothing to encode
        negative.texts = {}
    models = [SteeredDenoiser(model, family, build(), calls, negative, layout, steps) for model in get_denoisers(pipe)]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(model.install(layers))
        stack.enter_context(calls.track())
        yield pipe
    _check_used(models)


def _check_used(models: Sequence[SteeredDenoiser]) -> None:
    """Raise a ValueError if calls were steered, but no layer used the negative prompt."""
    if any(model.steered for model in models) and not any(model.steering.used for model in models):
        raise ValueError("layers: got no layer that uses the negative prompt; expected at least one.")


def _collect_texts(pipe: Any, prompts: Sequence[Prompts]) -> dict[str, Prompts]:
    """Return the negatives by argument name of the encoder.

    Raises:
        ValueError: The pipeline has no encoder for a second or third negative.
    """
    if all(prompt is None for prompt in prompts):
        return {}
    if prompts[0] is None:
        raise ValueError("negative_prompt: got None beside negative_prompt_2 or negative_prompt_3; expected a text.")
    texts = dict(zip(("prompt", "prompt_2", "prompt_3"), prompts, strict=True))
    known = inspect.signature(getattr(pipe, find_encoder_method(pipe))).parameters
    for name, prompt in texts.items():
        if prompt is not None and name not in known:
            raise ValueError(
                f"negative_{name}: got {prompt!r}; expected None, as {type(pipe).__name__} takes no {name}."
            )
    return {name: prompt for name, prompt in texts.items() if prompt is not None}


def _check_negative(negative: NegativePrompt) -> None:
    if negative.texts and negative.embeds is not None:
        raise ValueError("negative_prompt_embeds: got embeddings beside negative_prompt; expected one of the two.")
    if negative.family.extend and not negative.family.masked and negative.mask is not None:
        raise ValueError("negative_attention_mask: got a mask; expected None, as this joint attention has none.")
    if negative.family.denoiser_part == "unet" and negative.max_sequence_length is not None:
        raise ValueError(
            f"max_sequence_length: got {negative.max_sequence_length}; expected None, as CLIP's length is fixed."
        )


def _configure_rule(name: str, options: dict[str, float]) -> Rule:
    if name not in RULES:
        raise ValueError(f"rule: got {name!r}; expected {', '.join(RULES)}.")
    rule = RULES[name]
    known = getattr(rule.combine, "__kwdefaults__", None) or {}
    for option in options:
        if option not in known:
            raise ValueError(
                f"{option}: got an option that {name!r} does not have; expected {', '.join(known) or 'none'}."
            )
    return replace(rule, combine=partial(rule.combine, **options)) if options else rule


def _to_scale(scale: float | Sequence[float] | Tensor) -> Scale:
    """Return the scale as a tensor, which does not trigger recompilation; 0 stays a number."""
    values = scale if isinstance(scale, Tensor) else torch.tensor(scale).float().reshape(-1)
    if values.device.type != "meta" and not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(f"scale: got {scale}; expected finite numbers of at least 0.")
    return 0.0 if isinstance(scale, int | float) and scale == 0 else values
