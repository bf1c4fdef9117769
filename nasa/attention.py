"""Cross-attention that also attends to a negative prompt: a processor for diffusers' attention layers.

B batch, N negative prompts, L image tokens, T text tokens, D features, H heads, K features of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasa.attention_rules import RULES, Rule, Scale
from nasa.batch_layouts import BatchSplit
from nasa.prompt_embeds import PromptEmbeds

CROSS_ATTENTION_SUFFIX = "attn2.processor"  # suffix of a key of `attn_processors`
WAN_TEXT_TOKENS = 512  # fixed in diffusers' WanAttnProcessor
KeyValue = tuple[Tensor, Tensor]  # K and V of a text, [B, H, T, K]


@dataclass
class Steering:
    """The negative prompt that all steered layers of one model share; None means plain attention.

    `embeds_NTD` is the projected text, one row for all images or one per image; `mask_NT` is True for tokens that
    count. `scale` is a number or a tensor [N]. `split` selects the conditional rows of the current batch, the only ones
    that are steered; None selects every row. `active` is False during a call of the model that must stay plain. A layer
    that used the negative sets `used`.
    """

    embeds_NTD: Tensor | None = None
    mask_NT: Tensor | None = None
    scale: Scale = 0.0
    split: BatchSplit | None = None
    rule: Rule = field(default=RULES["nasa"])
    active: bool = True
    used: bool = False

    @property
    def negative_prompt(self) -> PromptEmbeds | None:
        """The negative prompt's embeddings and mask, or None."""
        return None if self.embeds_NTD is None else PromptEmbeds(self.embeds_NTD, self.mask_NT)

    @property
    def is_plain(self) -> bool:
        """Tell whether attention is plain: no negative prompt, scale 0, or a call that is not steered."""
        no_scale = not isinstance(self.scale, Tensor) and self.scale == 0
        return self.embeds_NTD is None or no_scale or not self.active


class SteeredAttnProcessor:
    """Runs eqs. 7-9 if the shared `Steering` has a negative prompt, and the original processor otherwise.

    The same query attends to the positive and the negative keys, which the same weights (and key normalisation)
    project; the rule combines the two outputs before `to_out`.
    `norm_across_heads` is True if the model normalises queries and keys before it splits them into heads.
    `negative_keys` caches K- and V- for as long as the negative prompt stays the same.
    """

    def __init__(self, original_processor: Any, steering: Steering, *, norm_across_heads: bool = False) -> None:
        self.original_processor = original_processor
        self.steering = steering
        self.norm_across_heads = norm_across_heads
        self.negative_keys: KeyValue | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Run the layer, steered away from the negative prompt if one is set."""
        if self.steering.is_plain or encoder_hidden_states is None:
            output: Tensor = self.original_processor(
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )
            return output
        if isinstance(encoder_hidden_states, tuple):
            raise ValueError("pipe: got a pipeline with an IP-Adapter; expected one without. Call unload_ip_adapter().")
        assert hidden_states.ndim == 3, "cross-attention over image tokens [B, L, D]"
        self.steering.used = True
        query = self.project_query(attn, hidden_states)
        text, image = _split_text_and_image(attn, encoder_hidden_states)
        mask = _prepare_mask(attn, attention_mask, text)
        z_BLD = self._steer(attn, query, (*self.project_key_value(attn, text), mask))
        if image is not None:
            z_BLD = z_BLD + merge_heads(attend(query, *self.project_image_key_value(attn, image), None))
        z_BLD = attn.to_out[1](attn.to_out[0](z_BLD))
        if getattr(attn, "residual_connection", False):
            z_BLD = z_BLD + hidden_states
        rescaled: Tensor = z_BLD / getattr(attn, "rescale_output_factor", 1.0)
        return rescaled

    def project_query(self, attn: Any, hidden_BLD: Tensor) -> Tensor:
        """Return the queries [B, H, L, K]."""
        return self._split_heads(attn, attn.to_q(hidden_BLD), attn.norm_q)

    def project_key_value(self, attn: Any, text_BTD: Tensor) -> KeyValue:
        """Return K and V of a text, each [B, H, T, K]."""
        if getattr(attn, "norm_cross", None):
            text_BTD = attn.norm_encoder_hidden_states(text_BTD)
        if getattr(attn, "fused_projections", False):
            key, value = attn.to_kv(text_BTD).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(text_BTD), attn.to_v(text_BTD)
        return self._split_heads(attn, key, attn.norm_k), self._split_heads(attn, value, None)

    def project_image_key_value(self, attn: Any, image_BTD: Tensor) -> KeyValue:
        """Return K and V of image tokens, for which Wan's image-to-video model has separate weights."""
        if getattr(attn, "fused_projections", False):
            key, value = attn.to_added_kv(image_BTD).chunk(2, dim=-1)
        else:
            key, value = attn.add_k_proj(image_BTD), attn.add_v_proj(image_BTD)
        return self._split_heads(attn, key, attn.norm_added_k), self._split_heads(attn, value, None)

    def _split_heads(self, attn: Any, x_BLD: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is not None and self.norm_across_heads:
            return split_heads(attn, norm(x_BLD))
        return split_heads(attn, x_BLD, norm)

    def _steer(self, attn: Any, query: Tensor, positive: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        split = self.steering.split
        if split is None:
            return self._combine(attn, query, positive)
        plain = merge_heads(attend(query[split.others], *split.take(split.others, positive)))
        chosen = split.take(split.conditional, positive)
        return split.join(plain, self._combine(attn, query[split.conditional], chosen))

    def _combine(self, attn: Any, query: Tensor, positive: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        steering, batch = self.steering, query.shape[0]
        key, value = self.negative_keys or self.project_key_value(attn, _require_embeds(steering).to(query))
        mask_NT = steering.mask_NT
        mask = None if mask_NT is None else repeat_per_image(mask_NT, batch)[:, None, None].bool()
        negative = (repeat_per_image(key, batch).to(query), repeat_per_image(value, batch).to(query), mask)
        return steer_attention(steering.rule, query, positive, negative, expand_scale(steering.scale, query))


def steer_attention(
    rule: Rule,
    query_BHLK: Tensor,
    positive: tuple[Tensor, Tensor, Tensor | None],
    negative: tuple[Tensor, Tensor, Tensor | None],
    scale: Scale,
) -> Tensor:
    """Return the attention rule applied to eqs. 7 and 8, [B, L, D].

    `positive` and `negative` are K, V and a mask each. A tensor `scale` is [B, 1, 1].
    """
    z_pos, z_neg = attend(query_BHLK, *positive), attend(query_BHLK, *negative)
    if not rule.per_head:
        return rule.combine(merge_heads(z_pos), merge_heads(z_neg), scale)
    share = torch.sigmoid(_log_normalizer(query_BHLK, *negative[::2]) - _log_normalizer(query_BHLK, *positive[::2]))
    z_BHLK: Tensor = rule.combine(z_pos, z_neg, scale[..., None] if isinstance(scale, Tensor) else scale, share)
    return merge_heads(z_BHLK)


def attend(query_BHLK: Tensor, key_BHTK: Tensor, value_BHTK: Tensor, mask: Tensor | None) -> Tensor:
    """Return eq. 7 or 8, softmax(Q K^T / sqrt d) V of one text, [B, H, L, K]; `mask` is additive or boolean."""
    return F.scaled_dot_product_attention(query_BHLK, key_BHTK, value_BHTK, attn_mask=mask)


def _log_normalizer(query_BHLK: Tensor, key_BHTK: Tensor, mask: Tensor | None) -> Tensor:
    """Return the logarithm of the softmax's denominator, [B, H, L, 1]."""
    logits = (query_BHLK @ key_BHTK.transpose(-1, -2)).float() / query_BHLK.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    log_normalizer: Tensor = logits.logsumexp(-1, keepdim=True)
    return log_normalizer.to(query_BHLK.dtype)


def split_heads(attn: Any, x_BLD: Tensor, norm: nn.Module | None = None) -> Tensor:
    """Return [B, H, L, K] of [B, L, H * K]; `norm` is applied per head."""
    x_BHLK = x_BLD.view(*x_BLD.shape[:2], attn.heads, -1).transpose(1, 2)
    return x_BHLK if norm is None else norm(x_BHLK)


def merge_heads(z_BHLK: Tensor) -> Tensor:
    """Merge heads: [B, H, L, K] to [B, L, H * K]."""
    return z_BHLK.transpose(1, 2).flatten(2)


def _require_embeds(steering: Steering) -> Tensor:
    assert steering.embeds_NTD is not None
    return steering.embeds_NTD


def expand_scale(scale: Scale, like: Tensor) -> Scale:
    """Return a tensor scale as [B, 1, 1] in the dtype of `like`; a number is returned unchanged."""
    if not isinstance(scale, Tensor):
        return scale
    return repeat_per_image(scale.reshape(-1), like.shape[0])[:, None, None].to(like)


def repeat_per_image(value: Tensor, batch: int) -> Tensor:
    """Return one row per image; a row is repeated for consecutive images if there are fewer."""
    if batch % value.shape[0]:
        raise ValueError(
            f"negative_prompt: got {value.shape[0]} for {batch} images; expected one for all or one per image."
        )
    if value.shape[0] == 1:
        return value.expand(batch, *value.shape[1:])
    return value.repeat_interleave(batch // value.shape[0], dim=0)


def _split_text_and_image(attn: Any, tokens_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split the tokens of Wan's image-to-video model into text and the image tokens, which come first."""
    if getattr(attn, "add_k_proj", None) is None:
        return tokens_BTD, None
    image_tokens = tokens_BTD.shape[1] - WAN_TEXT_TOKENS
    return tokens_BTD[:, image_tokens:], tokens_BTD[:, :image_tokens]


def _prepare_mask(attn: Any, mask: Tensor | None, text_BTD: Tensor) -> Tensor | None:
    """Return diffusers' additive mask, broadcast over queries, [B, H, 1, T]."""
    if mask is None:
        return None
    batch, tokens = text_BTD.shape[:2]
    prepared: Tensor = attn.prepare_attention_mask(mask, tokens, batch)
    return prepared.view(batch, attn.heads, -1, prepared.shape[-1])


def install_processors(
    model: Any,
    steering: Steering,
    *,
    layers: Callable[[str], bool] = lambda _: True,
    norm_across_heads: bool = False,
) -> dict[str, Any]:
    """Replace the processors of a diffusers model's cross-attention layers, and return the original ones.

    Raises:
        ValueError: The model has no cross-attention layer.
    """
    original_processors: dict[str, Any] = dict(model.attn_processors)
    processors = {
        name: SteeredAttnProcessor(original, steering, norm_across_heads=norm_across_heads)
        for name, original in original_processors.items()
        if _is_cross_attention(model, name) and layers(name)
    }
    if not processors:
        raise ValueError(f"denoiser: got {type(model).__name__}; expected cross-attention layers (processors *attn2).")
    model.set_attn_processor({**original_processors, **processors})
    return original_processors


def _is_cross_attention(model: Any, name: str) -> bool:
    """Return whether a layer is cross-attention: attn2, or attn1 of a UNet with `only_cross_attention`."""
    if name.endswith(CROSS_ATTENTION_SUFFIX):
        return True
    layer = model.get_submodule(name.removesuffix(".processor"))
    return name.endswith("attn1.processor") and getattr(layer, "is_cross_attention", False)


@contextmanager
def apply_negative_prompt(steering: Steering, negative: PromptEmbeds | None, scale: Scale) -> Iterator[None]:
    """Steer the installed layers away from a projected text inside the context; None leaves them plain."""
    if negative is not None:
        steering.embeds_NTD, steering.mask_NT, steering.scale = negative.embeds, negative.attention_mask, scale
    try:
        yield
    finally:
        steering.embeds_NTD, steering.mask_NT, steering.scale = None, None, 0.0


@contextmanager
def restore_steering(steering: Steering, snapshot: Steering) -> Iterator[None]:
    """Give the installed layers the state of an earlier call inside the context, and leave them plain after it."""
    vars(steering).update(vars(snapshot))
    with apply_negative_prompt(steering, None, 0.0):
        yield
