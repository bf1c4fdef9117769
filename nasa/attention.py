"""Cross-attention that also looks at a negative prompt: a processor for diffusers' attention layers.

B batch, N negative prompts, L image tokens, T text tokens, D features, H heads, K features of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasa.conditional import Split
from nasa.prompt_embeds import PromptEmbeds
from nasa.rules import RULES, Rule, Scale

CROSS_ATTENTION_SUFFIX = "attn2.processor"
WAN_TEXT_TOKENS = 512  # fixed in diffusers' WanAttnProcessor
Keys = tuple[Tensor, Tensor]  # K and V of a text, [B, H, T, K]


@dataclass
class Steering:
    """The negative prompt that the steered layers of one model look at; None means plain attention.

    `embeds_NTD` is the text as the layers see it, one row for all images or one for each; `mask_NT` is True
    where a token counts. `scale` is a number or a tensor [N]. `split` tells the conditional rows of the batch at hand,
    which alone are steered; None is every row. `active` is False for a call of the model that is to stay plain.
    `used` is set by a layer that used the negative.
    """

    embeds_NTD: Tensor | None = None
    mask_NT: Tensor | None = None
    scale: Scale = 0.0
    split: Split | None = None
    rule: Rule = field(default=RULES["nasa"])
    active: bool = True
    used: bool = False

    @property
    def text(self) -> PromptEmbeds | None:
        """The negative prompt's embeddings and mask, or None."""
        return None if self.embeds_NTD is None else PromptEmbeds(self.embeds_NTD, self.mask_NT)

    @property
    def plain(self) -> bool:
        """Whether attention is plain: no negative prompt, scale 0, or not in this call."""
        no_scale = not isinstance(self.scale, Tensor) and self.scale == 0
        return self.embeds_NTD is None or no_scale or not self.active


class SteeredAttnProcessor:
    """Runs the plain processor, or eqs. 7-9 where the shared `Steering` holds a negative prompt.

    The same query meets the positive and the negative keys, projected by the same weights (and the same
    key normalisation, where a model has one); the rule combines the two before `to_out`.
    `norm_across_heads` says that the model normalises queries and keys before it splits them into heads.
    `negative_keys` are K- and V-, where they were computed beforehand for as long as the negative stays.
    """

    def __init__(self, plain: Any, steering: Steering, *, norm_across_heads: bool = False) -> None:
        self.plain = plain
        self.steering = steering
        self.norm_across_heads = norm_across_heads
        self.negative_keys: Keys | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Run the layer, steered away from the negative prompt where one is set."""
        if self.steering.plain or encoder_hidden_states is None:
            output: Tensor = self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
            return output
        if isinstance(encoder_hidden_states, tuple):
            raise ValueError("pipe: got a pipeline with an IP-Adapter; expected one without. Call unload_ip_adapter().")
        assert hidden_states.ndim == 3, "cross-attention over image tokens [B, L, D]"
        self.steering.used = True
        query = self.query(attn, hidden_states)
        text, image = _text_and_image(attn, encoder_hidden_states)
        mask = _prepare(attn, attention_mask, text)
        z_BLD = self._steer(attn, query, (*self.keys(attn, text), mask))
        if image is not None:
            z_BLD = z_BLD + merge(attend(query, *self.image_keys(attn, image), None))
        z_BLD = attn.to_out[1](attn.to_out[0](z_BLD))
        if getattr(attn, "residual_connection", False):
            z_BLD = z_BLD + hidden_states
        rescaled: Tensor = z_BLD / getattr(attn, "rescale_output_factor", 1.0)
        return rescaled

    def query(self, attn: Any, hidden_BLD: Tensor) -> Tensor:
        """Return the queries [B, H, L, K]."""
        return self._heads(attn, attn.to_q(hidden_BLD), attn.norm_q)

    def keys(self, attn: Any, text_BTD: Tensor) -> Keys:
        """K and V of a text that the layer sees."""
        if getattr(attn, "norm_cross", None):
            text_BTD = attn.norm_encoder_hidden_states(text_BTD)
        if getattr(attn, "fused_projections", False):
            key, value = attn.to_kv(text_BTD).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(text_BTD), attn.to_v(text_BTD)
        return self._heads(attn, key, attn.norm_k), self._heads(attn, value, None)

    def image_keys(self, attn: Any, image_BTD: Tensor) -> Keys:
        """K and V of an image's tokens, which Wan's image-to-video projects by weights of their own."""
        if getattr(attn, "fused_projections", False):
            key, value = attn.to_added_kv(image_BTD).chunk(2, dim=-1)
        else:
            key, value = attn.add_k_proj(image_BTD), attn.add_v_proj(image_BTD)
        return self._heads(attn, key, attn.norm_added_k), self._heads(attn, value, None)

    def _heads(self, attn: Any, x_BLD: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is not None and self.norm_across_heads:
            return split_heads(attn, norm(x_BLD))
        return split_heads(attn, x_BLD, norm)

    def _steer(self, attn: Any, query: Tensor, positive: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """Apply the rule to the conditional rows; the others stay plain."""
        split = self.steering.split
        if split is None:
            return self._combine(attn, query, positive)
        plain = merge(attend(query[split.others], *split.take(split.others, positive)))
        chosen = split.take(split.conditional, positive)
        return split.join(plain, self._combine(attn, query[split.conditional], chosen))

    def _combine(self, attn: Any, query: Tensor, positive: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        steering, batch = self.steering, query.shape[0]
        key, value = self.negative_keys or self.keys(attn, _embeds(steering).to(query))
        mask_NT = steering.mask_NT
        mask = None if mask_NT is None else per_image(mask_NT, batch)[:, None, None].bool()
        negative = (per_image(key, batch).to(query), per_image(value, batch).to(query), mask)
        return steer_attention(steering.rule, query, positive, negative, steering_scale(steering.scale, query))


def steer_attention(
    rule: Rule,
    query_BHLK: Tensor,
    positive: tuple[Tensor, Tensor, Tensor | None],
    negative: tuple[Tensor, Tensor, Tensor | None],
    scale: Scale,
) -> Tensor:
    """Apply the rule to eqs. 7 and 8, heads merged, [B, L, D]; `positive` and `negative` are K, V and a mask.

    A tensor `scale` is [B, 1, 1].
    """
    z_pos, z_neg = attend(query_BHLK, *positive), attend(query_BHLK, *negative)
    if not rule.per_head:
        return rule.combine(merge(z_pos), merge(z_neg), scale)
    share = torch.sigmoid(_log_mass(query_BHLK, *negative[::2]) - _log_mass(query_BHLK, *positive[::2]))
    z_BHLK: Tensor = rule.combine(z_pos, z_neg, scale[..., None] if isinstance(scale, Tensor) else scale, share)
    return merge(z_BHLK)


def attend(query_BHLK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, mask: Tensor | None) -> Tensor:
    """Eqs. 7 and 8: softmax(Q K^T / sqrt d) V of one text, [B, H, L, K]; `mask` is additive or boolean."""
    return F.scaled_dot_product_attention(query_BHLK, key_BHTK, value_BHTK, attn_mask=mask)


def _log_mass(query_BHLK: Tensor, key_BHTK: Tensor, mask: Tensor | None) -> Tensor:
    """Logarithm of the softmax's denominator, [B, H, L, 1]."""
    logits = (query_BHLK @ key_BHTK.transpose(-1, -2)).float() / query_BHLK.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    log_mass: Tensor = logits.logsumexp(-1, keepdim=True)
    return log_mass.to(query_BHLK.dtype)


def split_heads(attn: Any, x_BLD: Tensor, norm: nn.Module | None = None) -> Tensor:
    """[B, H, L, K], each head normalised where the layer has a norm."""
    x_BHLK = x_BLD.view(*x_BLD.shape[:2], attn.heads, -1).transpose(1, 2)
    return x_BHLK if norm is None else norm(x_BHLK)


def merge(z_BHLK: Tensor) -> Tensor:
    """Merge heads: [B, H, L, K] to [B, L, H * K]."""
    return z_BHLK.transpose(1, 2).flatten(2)


def _embeds(steering: Steering) -> Tensor:
    assert steering.embeds_NTD is not None
    return steering.embeds_NTD


def steering_scale(scale: Scale, like: Tensor) -> Scale:
    """Return the scale, one per image as [B, 1, 1] in the dtype of `like`."""
    return per_image(scale.reshape(-1), like.shape[0])[:, None, None].to(like) if isinstance(scale, Tensor) else scale


def per_image(value: Tensor, batch: int) -> Tensor:
    """One row for each of `batch` images: given so, or repeated for consecutive images."""
    if batch % value.shape[0]:
        raise ValueError(
            f"negative_prompt: {value.shape[0]} given for a batch of {batch} images; give one for all or one for each"
        )
    if value.shape[0] == 1:
        return value.expand(batch, *value.shape[1:])
    return value.repeat_interleave(batch // value.shape[0], dim=0)


def _text_and_image(attn: Any, tokens_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split Wan's image-to-video text into image tokens, which stand first and have a fixed number, and text."""
    if getattr(attn, "add_k_proj", None) is None:
        return tokens_BTD, None
    image_tokens = tokens_BTD.shape[1] - WAN_TEXT_TOKENS
    return tokens_BTD[:, image_tokens:], tokens_BTD[:, :image_tokens]


def _prepare(attn: Any, mask: Tensor | None, text_BTD: Tensor) -> Tensor | None:
    """Return diffusers' own additive mask, broadcast over heads and queries."""
    if mask is None:
        return None
    batch, tokens = text_BTD.shape[:2]
    prepared: Tensor = attn.prepare_attention_mask(mask, tokens, batch)
    return prepared.view(batch, attn.heads, -1, prepared.shape[-1])


def install(
    model: Any,
    steering: Steering,
    *,
    layers: Callable[[str], bool] = lambda _: True,
    norm_across_heads: bool = False,
) -> dict[str, Any]:
    """Steer the cross-attention layers of a diffusers model; returns the processors that stood there."""
    before: dict[str, Any] = dict(model.attn_processors)
    processors = {
        name: SteeredAttnProcessor(plain, steering, norm_across_heads=norm_across_heads)
        for name, plain in before.items()
        if _sees_text(model, name) and layers(name)
    }
    if not processors:
        raise ValueError(f"{type(model).__name__} has no cross-attention layer (a processor named *attn2) to steer")
    model.set_attn_processor({**before, **processors})
    return before


def _sees_text(model: Any, name: str) -> bool:
    """Every attn2; and attn1 where a UNet has `only_cross_attention`, as the upscaler's."""
    if name.endswith(CROSS_ATTENTION_SUFFIX):
        return True
    layer = model.get_submodule(name.removesuffix(".processor"))
    return name.endswith("attn1.processor") and getattr(layer, "is_cross_attention", False)


@contextmanager
def steered(steering: Steering, negative: PromptEmbeds | None, scale: Scale) -> Iterator[None]:
    """Steer the installed layers by `scale` away from a text, as they see it, inside the context."""
    if negative is not None:
        steering.embeds_NTD, steering.mask_NT, steering.scale = negative.embeds, negative.attention_mask, scale
    try:
        yield
    finally:
        steering.embeds_NTD, steering.mask_NT, steering.scale = None, None, 0.0
