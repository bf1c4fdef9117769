"""Joint attention that also attends to a negative prompt, for FLUX, Stable Diffusion 3, Qwen-Image and similar models.

The denoiser is called with the negative's tokens appended to the positive's, and layers that act on single tokens
process both. Attention keeps them separate: positive text and image attend to each other as without a negative, the
negative text attends to itself and the image, and the rule steers the image's rows.
B batch, S tokens (text, then image), D features, H heads, K features of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from nasa.attention import Steering, attend, expand_scale, merge_heads, split_heads, steer_attention

JOINT_ATTENTION_MODES = ("text", "joint")
PROCESSOR_SUFFIX = ".attn.processor"


@dataclass
class JointSteering(Steering):
    """The state of steering in joint attention.

    `positive_tokens` is the index of the first negative token. `joint_attention` defines Z- of eq. 8 for the image's
    rows, which the paper leaves open: "text" is their attention to the negative's tokens only, "joint" to these and the
    image's tokens. With "joint" Z- includes image-to-image attention, so steering shrinks the image's stream.
    """

    positive_tokens: int = 0
    joint_attention: str = "text"

    @property
    def negative_tokens(self) -> int:
        """Number of negative tokens."""
        return 0 if self.embeds_NTD is None else self.embeds_NTD.shape[1]


class JointSteeredProcessor:
    """Attends to both texts if the shared `JointSteering` has a negative, else runs the original processor.

    If `is_steered` is False the negative text is still processed but the image is not steered.
    """

    def __init__(self, original_processor: Any, steering: JointSteering, *, is_steered: bool = True) -> None:
        self.original_processor, self.steering, self.is_steered = original_processor, steering, is_steered

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
        """Run joint attention with the negative's tokens appended to the positive's."""
        if self.steering.is_plain:
            optional = {"image_rotary_emb": image_rotary_emb, "encoder_hidden_states_mask": encoder_hidden_states_mask}
            kwargs.update({name: value for name, value in optional.items() if value is not None})
            kwargs.update(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
            return self.original_processor(attn, hidden_states, **kwargs)
        if attention_mask is not None or any(value is not None for value in kwargs.values()):
            names = ", ".join(["attention_mask", *kwargs])
            raise ValueError(f"{names}: got a value; expected None while joint attention is steered.")
        query, key, value = project(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            rotary = self._select_rotary(image_rotary_emb)
            query, key = rotate(query, rotary), rotate(key, rotary)
        z_text, z_image = self._attend(query, key, value, encoder_hidden_states_mask)
        if encoder_hidden_states is None:
            return torch.cat([z_text, z_image], dim=1)
        z_image = attn.to_out[1](attn.to_out[0](z_image))
        return z_image, z_text if getattr(attn, "context_pre_only", False) else attn.to_add_out(z_text)

    def _select_rotary(self, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Return the rotary embeddings of all tokens, text first; in Qwen-Image each text's positions start at 0."""
        if not embeddings[0].is_complex():
            return embeddings
        image, text = embeddings
        texts = (text[: self.steering.positive_tokens], text[: self.steering.negative_tokens])
        return (torch.cat([*texts, image]),)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return both texts' rows [B, T, D] and the image's steered rows [B, L, D]; `text_mask` [B, T] covers both."""
        texts = [self.steering.positive_tokens, self.steering.negative_tokens]
        sizes = [*texts, query.shape[2] - sum(texts)]
        masks = (None, None) if text_mask is None else torch.split(text_mask.bool()[:, None, None], texts, dim=-1)
        return self._attend_parts([torch.split(part, sizes, dim=2) for part in (query, key, value)], masks)

    def _attend_parts(self, parts: Sequence[Sequence[Tensor]], masks: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Return what `_attend` does; `parts` are Q, K and V, each of the positive text, the negative and the image."""
        steering = self.steering
        (q_pos, q_neg, q_image), (k_pos, k_neg, k_image), (v_pos, v_neg, v_image) = parts
        image_tokens = q_image.shape[2]
        masks_with_image = [None if mask is None else F.pad(mask, (0, image_tokens), value=True) for mask in masks]
        positive = (torch.cat([k_pos, k_image], dim=2), torch.cat([v_pos, v_image], dim=2), masks_with_image[0])
        negative = (torch.cat([k_neg, k_image], dim=2), torch.cat([v_neg, v_image], dim=2), masks_with_image[1])
        z_text = merge_heads(torch.cat([attend(q_pos, *positive), attend(q_neg, *negative)], dim=2))
        if not self.is_steered:
            return z_text, merge_heads(attend(q_image, *positive))
        steering.used = True
        negative = negative if steering.joint_attention == "joint" else (k_neg, v_neg, masks[1])
        return z_text, self._steer(q_image, positive, negative)

    def _steer(self, query: Tensor, positive: Any, negative: Any) -> Tensor:
        rule, split = self.steering.rule, self.steering.split
        if split is None:
            return steer_attention(rule, query, positive, negative, expand_scale(self.steering.scale, query))
        plain = merge_heads(attend(query[split.others], *split.take(split.others, positive)))
        query, positive, negative = (
            query[split.conditional],
            *(split.take(split.conditional, t) for t in (positive, negative)),
        )
        scale = expand_scale(self.steering.scale, query)
        return split.join(plain, steer_attention(rule, query, positive, negative, scale))


class ParallelSteeredProcessor(JointSteeredProcessor):
    """Attends as `JointSteeredProcessor` in FLUX.2's single-stream blocks, which fuse attention and feed-forward."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run attention and feed-forward side by side; `args` are the attention mask, which is None, and the rotary."""
        if self.steering.is_plain:
            return self.original_processor(attn, hidden_states, *args, **kwargs)
        _, image_rotary_emb = args
        fused = attn.to_qkv_mlp_proj(hidden_states)
        *projected, feed_forward = fused.split([attn.inner_dim] * 3 + [fused.shape[-1] - 3 * attn.inner_dim], dim=-1)
        norms = (attn.norm_q, attn.norm_k, None)
        query, key, value = (split_heads(attn, part, norm) for part, norm in zip(projected, norms, strict=True))
        query, key = rotate(query, image_rotary_emb), rotate(key, image_rotary_emb)
        attended = torch.cat(self._attend(query, key, value, None), dim=1)
        return attn.to_out(torch.cat([attended, attn.mlp_act_fn(feed_forward)], dim=-1))


def rotate(x_BHSK: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
    """Apply rotary embeddings, given as cosines and sines or as complex factors [S, K / 2]."""
    if len(rotary) == 2:
        rotated: Tensor = apply_rotary_emb(x_BHSK, rotary)
        return rotated
    pairs = torch.view_as_complex(x_BHSK.float().reshape(*x_BHSK.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary[0]).flatten(-2).to(x_BHSK)


def project(attn: Any, hidden_BSD: Tensor, text_BTD: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, K and V of all tokens, text first, each [B, H, S, K]."""
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


def install_joint_processors(model: Any, steering: JointSteering, layers: Any) -> dict[str, Any]:
    """Replace the processors of a transformer's joint attention layers, and return the original ones.

    Raises:
        ValueError: The model has no joint attention layer.
    """
    original_processors: dict[str, Any] = dict(model.attn_processors)
    processors = {
        name: _choose_class(model, name)(original, steering, is_steered=layers(name))
        for name, original in original_processors.items()
        if name.endswith(PROCESSOR_SUFFIX)
    }
    if not any(processor.is_steered for processor in processors.values()):
        raise ValueError(f"denoiser: got {type(model).__name__}; expected joint attention layers (processors *attn).")
    model.set_attn_processor({**original_processors, **processors})
    return original_processors


def _choose_class(model: Any, name: str) -> type[JointSteeredProcessor]:
    layer = model.get_submodule(name.removesuffix(".processor"))
    return ParallelSteeredProcessor if hasattr(layer, "to_qkv_mlp_proj") else JointSteeredProcessor
