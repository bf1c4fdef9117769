"""The negative prompt as the pipeline's own encoder sees it, with the options of the call at hand."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nasa.calls import encoder_name
from nasa.families import Family
from nasa.lora import module_state, scaled
from nasa.prompt_embeds import PromptEmbeds

ONCE = ("num_images_per_prompt", "num_videos_per_prompt")  # the negative is repeated where the batch is known
Prompts = str | Sequence[str] | None


@dataclass
class NegativePrompt:
    """A negative given as texts, or as embeddings and their mask.

    Texts are encoded once a call of the pipeline, and not again while its options and its encoders stay the same.
    `version` counts the encodings, so that what was computed from one can be told from what belongs to the next.
    """

    pipe: Any
    family: Family
    texts: Mapping[str, Prompts] = field(default_factory=dict)  # by the names of the encoder's arguments
    max_sequence_length: int | None = None
    embeds: Tensor | None = None
    mask: Tensor | None = None
    version: int = 0
    _options: dict[str, Any] | None = None
    _encoders: list[Any] = field(default_factory=list)

    @property
    def given(self) -> bool:
        """Whether there is a negative prompt."""
        return bool(self.texts) or self.embeds is not None

    def encode_as(self, call: inspect.BoundArguments) -> None:
        """Encode the texts as `call` of the pipeline's encoder will its prompt, and leave the encoder as it was."""
        if not self.texts:
            return
        options = self._changed(call)
        encoders = [getattr(self.pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
        state = [module_state(encoder) for encoder in encoders if isinstance(encoder, nn.Module)]
        if self._options is not None and state == self._encoders and _same(self._options, options):
            return
        changed = inspect.BoundArguments(call.signature, options)
        encode = getattr(self.pipe, encoder_name(self.pipe))
        with torch.no_grad(), scaled(encoder for encoder in encoders if encoder is not None):
            self._set(self.family.prompt_embeds_of(encode(*changed.args, **changed.kwargs)))
        self._options, self._encoders = options, state

    def encode_by_default(self) -> None:
        """Encode the texts where the denoiser is called without a call of its pipeline."""
        if not self.texts or self.embeds is not None:
            return
        first, *more = self.texts.values()
        assert first is not None
        if any(text is not None for text in more):
            raise ValueError(
                "negative_prompt_2, negative_prompt_3: got a text; expected None outside a pipeline's call."
            )
        with torch.no_grad():
            self._set(self.family.encode(self.pipe, _as_list(first), self.max_sequence_length))

    def _set(self, encoded: PromptEmbeds) -> None:
        self.embeds, self.mask, self.version = encoded.embeds, encoded.attention_mask, self.version + 1

    def _changed(self, call: inspect.BoundArguments) -> dict[str, Any]:
        """Return the call's arguments with the negative's texts in place of the prompt."""
        changed = {}
        for name, value in call.arguments.items():
            parameter = call.signature.parameters[name]
            if name in ONCE:
                value = 1
            elif name == "do_classifier_free_guidance":
                value = False
            elif name == "max_sequence_length":
                value = self.max_sequence_length or value
            elif name in self.texts:
                value = self.texts[name]
                value = None if value is None else _as_list(value)
            elif "prompt" in name:  # embeddings, masks, and the pipeline's own negative prompt
                value = None if parameter.default is parameter.empty else parameter.default
            changed[name] = value
        return changed


def _as_list(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether all options are plain values that are equal; a tensor or an image is another one each time."""
    plain = (str, int, float, bool, list, torch.device, torch.dtype, type(None), dict)
    return old.keys() == new.keys() and all(
        isinstance(new[name], plain) and type(old[name]) is type(new[name]) and old[name] == new[name] for name in new
    )
