"""Cross-attention that also looks at a negative prompt: a processor for diffusers' attention layers.

B batch, N negative prompts, L image tokens, T text tokens, D features, H heads, K features of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from nasa.rules import RULES, Rule, Scale

CROSS_ATTENTION_SUFFIX = "attn2.processor"


@dataclass
class Steering:
    """The negative prompt that the steered layers of one model look at; None means plain attention.

    `embeds_NTD` has one row for all images or one for each; `mask_NT` is True where a token counts.
    `scale` is a number or a tensor [N]. `guided` says whether the batch at hand is [unconditional;
    conditional], of which only the conditional half is steered. `calls` counts the layers that used the negative.
    """

    embeds_NTD: Tensor | None = None
    mask_NT: Tensor | None = None
    scale: Scale = 0.0
    guided: Callable[[], bool] = lambda: False
    rule: Rule = field(default=RULES["nasa"])
    calls: int = 0

    @property
    def plain(self) -> bool:
        return self.embeds_NTD is None or (not isinstance(self.scale, Tensor) and self.scale == 0)


class SteeredAttnProcessor:
    """Runs the plain processor, or eqs. 7-9 where the shared `Steering` holds a negative prompt.

    The same query meets the positive and the negative keys, projected by the same weights (and the
    same key normalisation, where a model has one); the rule combines the two before `to_out`.
    """

    def __init__(self, plain: Any, steering: Steering) -> None:
        self.plain = plain
        self.steering = steering

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if self.steering.plain or encoder_hidden_states is None:
            output: Tensor = self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
            return output
        assert hidden_states.ndim == 3, "cross-attention over image tokens [B, L, D]"
        self.steering.calls += 1
        query_BHLK = _heads(attn, attn.to_q(hidden_states))
        if attn.norm_q is not None:
            query_BHLK = attn.norm_q(query_BHLK)
        if attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        mask = _prepare(attn, attention_mask, encoder_hidden_states)
        z_pos_BLD = attend(attn, query_BHLK, encoder_hidden_states, mask)
        z_BLD = _steer(attn, query_BHLK, z_pos_BLD, self.steering)
        z_BLD = attn.to_out[1](attn.to_out[0](z_BLD))
        if attn.residual_connection:
            z_BLD = z_BLD + hidden_states
        rescaled: Tensor = z_BLD / attn.rescale_output_factor
        return rescaled


def attend(attn: Attention, query_BHLK: Tensor, text_BTD: Tensor, mask: Tensor | None) -> Tensor:
    """Eqs. 7 and 8: softmax(Q K^T / sqrt d) V of one text, heads merged, [B, L, D]; `mask` is additive or boolean."""
    key_BHTK = _heads(attn, attn.to_k(text_BTD))
    value_BHTK = _heads(attn, attn.to_v(text_BTD))
    if attn.norm_k is not None:
        key_BHTK = attn.norm_k(key_BHTK)
    z_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHTK, value_BHTK, attn_mask=mask)
    z_BLD: Tensor = z_BHLK.transpose(1, 2).flatten(2).to(query_BHLK.dtype)
    return z_BLD


def _steer(attn: Attention, query_BHLK: Tensor, z_pos_BLD: Tensor, steering: Steering) -> Tensor:
    """Apply the rule to the whole batch, or to its conditional half under classifier-free guidance."""
    assert steering.embeds_NTD is not None
    if steering.guided():
        plain, conditional = z_pos_BLD.chunk(2)
        steered = _combine(attn, query_BHLK.chunk(2)[1], conditional, steering)
        return torch.cat([plain, steered])
    return _combine(attn, query_BHLK, z_pos_BLD, steering)


def _combine(attn: Attention, query_BHLK: Tensor, z_pos_BLD: Tensor, steering: Steering) -> Tensor:
    batch = query_BHLK.shape[0]
    embeds = _per_image(steering.embeds_NTD, batch).to(query_BHLK)
    if attn.norm_cross:
        embeds = attn.norm_encoder_hidden_states(embeds)
    mask = None if steering.mask_NT is None else _per_image(steering.mask_NT, batch)[:, None, None].bool()
    z_neg_BLD = attend(attn, query_BHLK, embeds, mask)
    scale = steering.scale
    if isinstance(scale, Tensor):
        scale = _per_image(scale.reshape(-1), batch)[:, None, None].to(z_pos_BLD)
    return steering.rule(z_pos_BLD, z_neg_BLD, scale)


def _per_image(value: Tensor | None, batch: int) -> Tensor:
    """One row for each of `batch` images: given so, or repeated for consecutive images."""
    assert value is not None
    if batch % value.shape[0]:
        raise ValueError(
            f"negative_prompt: {value.shape[0]} given for a batch of {batch} images; give one for all or one for each"
        )
    return value.repeat_interleave(batch // value.shape[0], dim=0)


def _heads(attn: Attention, x_BLD: Tensor) -> Tensor:
    batch, tokens, features = x_BLD.shape
    return x_BLD.view(batch, tokens, attn.heads, features // attn.heads).transpose(1, 2)


def _prepare(attn: Attention, mask: Tensor | None, text_BTD: Tensor) -> Tensor | None:
    """diffusers' own additive mask, broadcast over heads and queries."""
    if mask is None:
        return None
    batch, tokens = text_BTD.shape[:2]
    prepared: Tensor = attn.prepare_attention_mask(mask, tokens, batch)
    return prepared.view(batch, attn.heads, -1, prepared.shape[-1])


def install(model: Any, steering: Steering) -> dict[str, Any]:
    """Steer every cross-attention layer of a diffusers model; returns the processors that stood there."""
    before: dict[str, Any] = dict(model.attn_processors)
    steered = {
        name: SteeredAttnProcessor(plain, steering) if name.endswith(CROSS_ATTENTION_SUFFIX) else plain
        for name, plain in before.items()
    }
    if not any(isinstance(processor, SteeredAttnProcessor) for processor in steered.values()):
        raise ValueError(f"{type(model).__name__} has no cross-attention layer (a processor named *attn2) to steer")
    model.set_attn_processor(steered)
    return before


@contextmanager
def negative(steering: Steering, embeds_NTD: Tensor | None, scale: Scale) -> Iterator[None]:
    """Within the context, installed layers steer away from `embeds_NTD` by `scale`."""
    steering.embeds_NTD, steering.scale = embeds_NTD, scale
    try:
        yield
    finally:
        steering.embeds_NTD, steering.scale = None, 0.0
