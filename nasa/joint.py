"""Joint attention that also looks at a negative prompt: FLUX, Stable Diffusion 3, Qwen-Image and their like.

The denoiser is called with the negative's tokens behind the positive's, and everything that acts on a token
alone takes both. Attention keeps them apart: positive text and image are what they are without a negative,
the negative text is a stream of its own beside them, and the image's rows are steered by the rule.
B batch, S tokens (text, then image), D features, H heads, K features of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from nasa.attention import Steering, attend, merge, split_heads, steer_attention, steering_scale

JOINT_ATTENTION = ("text", "joint")
SUFFIX = ".attn.processor"


@dataclass
class JointSteering(Steering):
    """The state of steering in joint attention.

    `positive_tokens` is where the negative's tokens begin. `joint_attention` says what Z- of eq. 8 is for the
    image's rows: "text", their attention to the negative's tokens alone, or "joint", to the negative's and the image's.
    The paper does not say which. With "joint" Z- holds image-to-image attention too, and steering shrinks
    the image's stream.
    """

    positive_tokens: int = 0
    joint_attention: str = "text"

    @property
    def negative_tokens(self) -> int:
        """Number of the negative's tokens."""
        return 0 if self.embeds_NTD is None else self.embeds_NTD.shape[1]


class JointSteeredProcessor:
    """Runs the plain processor, or both texts beside the image where the shared `JointSteering` holds a negative.

    Where `chosen` is False the negative's stream goes on and the image is not steered.
    """

    def __init__(self, plain: Any, steering: JointSteering, *, chosen: bool = True) -> None:
        self.plain, self.steering, self.chosen = plain, steering, chosen

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        encoder_hidden_states_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run joint attention with the negative's tokens behind the positive's."""
        if self.steering.plain:
            optional = {"image_rotary_emb": image_rotary_emb, "encoder_hidden_states_mask": encoder_hidden_states_mask}
            kwargs.update({name: value for name, value in optional.items() if value is not None})
            kwargs.update(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
            return self.plain(attn, hidden_states, **kwargs)
        if attention_mask is not None or any(value is not None for value in kwargs.values()):
            raise ValueError(
                f"{', '.join(['attention_mask', *kwargs])}: not supported while joint attention is steered"
            )
        query, key, value = _project(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            rotary = self._rotary(image_rotary_emb)
            query, key = rotate(query, rotary), rotate(key, rotary)
        z_text, z_image = self._attend(query, key, value, encoder_hidden_states_mask)
        if encoder_hidden_states is None:
            return torch.cat([z_text, z_image], dim=1)
        z_image = attn.to_out[1](attn.to_out[0](z_image))
        return z_image, z_text if attn.context_pre_only else attn.to_add_out(z_text)

    def _rotary(self, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Return the angles of all tokens, text first; Qwen-Image counts each text's tokens from the first."""
        if not embeddings[0].is_complex():
            return embeddings
        image, text = embeddings
        texts = (text[: self.steering.positive_tokens], text[: self.steering.negative_tokens])
        return (torch.cat([*texts, image]),)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both texts' rows [B, T, D] and the image's steered rows [B, L, D]; `text_mask` [B, T] is of both texts."""
        steering = self.steering
        texts = [steering.positive_tokens, steering.negative_tokens]
        image_tokens = query.shape[2] - sum(texts)
        sizes = [*texts, image_tokens]
        masks = (None, None) if text_mask is None else torch.split(text_mask.bool()[:, None, None], texts, dim=-1)
        (q_pos, q_neg, q_image), (k_pos, k_neg, k_image), (v_pos, v_neg, v_image) = (
            torch.split(part, sizes, dim=2) for part in (query, key, value)
        )
        beside = [None if mask is None else F.pad(mask, (0, image_tokens), value=True) for mask in masks]
        positive = (torch.cat([k_pos, k_image], dim=2), torch.cat([v_pos, v_image], dim=2), beside[0])
        negative = (torch.cat([k_neg, k_image], dim=2), torch.cat([v_neg, v_image], dim=2), beside[1])
        z_text = merge(torch.cat([attend(q_pos, *positive), attend(q_neg, *negative)], dim=2))
        if not self.chosen:
            return z_text, merge(attend(q_image, *positive))
        steering.used = True
        unwanted = negative if steering.joint_attention == "joint" else (k_neg, v_neg, masks[1])
        return z_text, self._steer(q_image, positive, unwanted)

    def _steer(self, query: Tensor, positive: Any, unwanted: Any) -> Tensor:
        rule, split = self.steering.rule, self.steering.split
        if split is None:
            return steer_attention(rule, query, positive, unwanted, steering_scale(self.steering.scale, query))
        plain = merge(attend(query[split.others], *split.take(split.others, positive)))
        query, positive, unwanted = (
            query[split.conditional],
            *(split.take(split.conditional, t) for t in (positive, unwanted)),
        )
        scale = steering_scale(self.steering.scale, query)
        return split.join(plain, steer_attention(rule, query, positive, unwanted, scale))


def rotate(x_BHSK: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
    """Rotate by the cosines and sines of all tokens, or by their complex factors [S, K / 2]."""
    if len(rotary) == 2:
        rotated: Tensor = apply_rotary_emb(x_BHSK, rotary)
        return rotated
    pairs = torch.view_as_complex(x_BHSK.float().reshape(*x_BHSK.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary[0]).flatten(-2).to(x_BHSK)


def _project(attn: Any, hidden_BSD: Tensor, text_BTD: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V of all tokens, text first, [B, H, S, K]."""
    fused = getattr(attn, "fused_projections", False)
    names, norms = ("to_q", "to_k", "to_v"), (attn.norm_q, attn.norm_k, None)
    image = attn.to_qkv(hidden_BSD).chunk(3, dim=-1) if fused else [getattr(attn, name)(hidden_BSD) for name in names]
    parts = [split_heads(attn, x, norm) for x, norm in zip(image, norms, strict=True)]
    if text_BTD is not None:
        added, norms = ("add_q_proj", "add_k_proj", "add_v_proj"), (attn.norm_added_q, attn.norm_added_k, None)
        text = attn.to_added_qkv(text_BTD).chunk(3, dim=-1) if fused else [getattr(attn, n)(text_BTD) for n in added]
        heads = [split_heads(attn, x, norm) for x, norm in zip(text, norms, strict=True)]
        parts = [torch.cat(pair, dim=2) for pair in zip(heads, parts, strict=True)]
    query, key, value = parts
    return query, key, value


def install_joint(model: Any, steering: JointSteering, layers: Any) -> dict[str, Any]:
    """Steer every joint attention layer of a diffusers transformer; returns the processors that stood there."""
    before: dict[str, Any] = dict(model.attn_processors)
    steered = {
        name: JointSteeredProcessor(plain, steering, chosen=layers(name))
        for name, plain in before.items()
        if name.endswith(SUFFIX)
    }
    if not any(processor.chosen for processor in steered.values()):
        raise ValueError(f"{type(model).__name__} has no joint attention layer (a processor named *attn) to steer")
    model.set_attn_processor({**before, **steered})
    return before
