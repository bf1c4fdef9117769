"""Joint attention with a negative prompt in Z-Image, whose blocks take image and caption as one sequence.

A caption comes as its own tensor [T, D]. The denoiser pads it to a multiple of 32 tokens, and the image's rotary
positions begin where that ends, so a negative that is appended to a caption would move the image. Here a caption is a
pair of a positive and a negative text. Both get the positions of a caption, the image those of its positive alone, and
both pass through the same layers. Every row has the same layout, image, positive, negative, with a mask for shorter
texts; the learned padding up to a multiple of 32 counts as text, and that of the image as image, as without a negative.
B batch, L image tokens, T text tokens, D features, K features of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasa.attention import attend, merge_heads
from nasa.joint_attention import JointSteeredProcessor, JointSteering, project, rotate

CAPTION_LAYERS, UNIFIED_LAYERS = "context_refiner.", "layers."  # of texts alone, and of image and texts
Caption = tuple[Tensor, Tensor]  # the positive and the negative text, each [T, D]


@dataclass(frozen=True)
class CaptionLayout:
    """Tokens of the positive and of the negative texts in each row, and a mask [B, T] over both, None if all count."""

    positive_tokens: int
    negative_tokens: int
    mask_BT: Tensor | None


@dataclass
class SequenceSteering(JointSteering):
    """The state of steering in a single sequence; `captions` is the layout of the denoiser's current call."""

    captions: CaptionLayout | None = None


class PairedCaptions:
    """A denoiser's `patchify_and_embed` that also takes captions of two texts."""

    def __init__(self, model: Any, steering: SequenceSteering) -> None:
        self.original, self.steering = model.patchify_and_embed, steering

    def __call__(self, images: list[Tensor], captions: Sequence[Tensor | Caption], *patch_sizes: int) -> Any:
        """Return the patches, texts, positions and padding of images and captions; pairs set the steering's layout.

        Raises:
            ValueError: Captions are pairs, and the images have different sizes.
        """
        if not isinstance(captions[0], tuple):
            return self.original(images, captions, *patch_sizes)
        if len({image.shape for image in images}) > 1:
            raise ValueError("x: got images of different sizes; expected one size while the denoiser is steered.")
        positives, negatives = (list(texts) for texts in zip(*captions, strict=True))
        patches, text, sizes, positions, text_positions, padding, text_padding = self.original(
            images, positives, *patch_sizes
        )
        _, negative, _, _, negative_positions, _, negative_padding = self.original(images, negatives, *patch_sizes)
        tokens = max(map(len, text)), max(map(len, negative))
        self.steering.captions = CaptionLayout(*tokens, _build_mask(text, negative, tokens))
        return (
            patches,
            _concatenate(text, negative, tokens),
            sizes,
            positions,
            _concatenate(text_positions, negative_positions, tokens),
            padding,
            _concatenate(text_padding, negative_padding, tokens),
        )


def _concatenate(positive: list[Tensor], negative: list[Tensor], tokens: tuple[int, int]) -> list[Tensor]:
    """Return each row's two parts as one, each part with zeros, or cut, to its number of tokens."""
    return [
        torch.cat([_fit(part, count) for part, count in zip(pair, tokens, strict=True)])
        for pair in zip(positive, negative, strict=True)
    ]


def _build_mask(positive: list[Tensor], negative: list[Tensor], tokens: tuple[int, int]) -> Tensor | None:
    if all((len(one), len(other)) == tokens for one, other in zip(positive, negative, strict=True)):
        return None
    ones = [[torch.ones_like(part[:, 0], dtype=torch.bool) for part in texts] for texts in (positive, negative)]
    return torch.stack(_concatenate(ones[0], ones[1], tokens))


def _fit(part: Tensor, tokens: int) -> Tensor:
    missing = max(tokens - len(part), 0)
    return F.pad(part[:tokens], (0,) * (2 * part.ndim - 1) + (missing,))


class SequenceSteeredProcessor(JointSteeredProcessor):
    """Attends as `JointSteeredProcessor` in a single sequence of image, positive and negative text."""

    steering: SequenceSteering

    def __call__(
        self, attn: Any, hidden_states: Tensor, *args: Any, freqs_cis: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run joint attention; the rotary factors `freqs_cis` are [B, L + T, K / 2]."""
        captions = self.steering.captions
        if self.steering.is_plain or captions is None:
            return self.original_processor(attn, hidden_states, *args, freqs_cis=freqs_cis, **kwargs)
        assert kwargs.get("attention_mask") is None, "every row has the same length"
        assert freqs_cis is not None
        query, key, value = project(attn, hidden_states, None)
        rotary = (freqs_cis[:, None],)
        texts = [captions.positive_tokens, captions.negative_tokens]
        sizes = [query.shape[2] - sum(texts), *texts]
        parts = []
        for part in (rotate(query, rotary), rotate(key, rotary), value):
            image, positive, negative = torch.split(part, sizes, dim=2)
            parts.append((positive, negative, image))
        mask = captions.mask_BT
        masks = (None, None) if mask is None else torch.split(mask[:, None, None], texts, dim=-1)
        z_text, z_image = self._attend_parts(parts, masks)
        output = attn.to_out[0](torch.cat([z_image, z_text], dim=1))
        return attn.to_out[1](output) if len(attn.to_out) > 1 else output


class CaptionProcessor(SequenceSteeredProcessor):
    """Attends within each of the two texts, in the layers that take no image."""

    def _attend_parts(self, parts: Sequence[Sequence[Tensor]], masks: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        (q_pos, q_neg, _), (k_pos, k_neg, _), (v_pos, v_neg, _) = parts
        z_pos, z_neg = attend(q_pos, k_pos, v_pos, masks[0]), attend(q_neg, k_neg, v_neg, masks[1])
        z_text = merge_heads(torch.cat([z_pos, z_neg], dim=2))
        return z_text, z_text[:, :0]


def list_processors(model: nn.Module) -> dict[str, Any]:
    """Return the processors of a model's attention layers, by names as in `attn_processors`, which Z-Image lacks."""
    layers = ((name, layer) for name, layer in model.named_modules() if hasattr(layer, "get_processor"))
    return {f"{name}.processor": layer.get_processor() for name, layer in layers}


def _set_processors(model: nn.Module, processors: dict[str, Any]) -> None:
    for name, processor in processors.items():
        model.get_submodule(name.removesuffix(".processor")).set_processor(processor)  # type: ignore[operator]


def install_single_sequence(model: Any, steering: SequenceSteering, layers: Callable[[str], bool]) -> dict[str, Any]:
    """Let a denoiser take pairs of texts as captions, replace its processors, and return the original ones.

    Raises:
        ValueError: No layer of image and text is to be steered.
    """
    original_processors = list_processors(model)
    steered = {name: layers(name) for name in original_processors if name.startswith(UNIFIED_LAYERS)}
    if not any(steered.values()):
        raise ValueError(f"denoiser: got {type(model).__name__}; expected joint attention layers ({UNIFIED_LAYERS}*).")
    processors = {
        name: SequenceSteeredProcessor(original_processors[name], steering, is_steered=chosen)
        for name, chosen in steered.items()
    }
    for name, original in original_processors.items():
        if name.startswith(CAPTION_LAYERS):
            processors[name] = CaptionProcessor(original, steering)
    _set_processors(model, processors)
    model.patchify_and_embed = PairedCaptions(model, steering)
    return original_processors


def remove_single_sequence(model: Any, original_processors: dict[str, Any]) -> None:
    """Restore the original processors and captions."""
    _set_processors(model, original_processors)
    del model.patchify_and_embed
