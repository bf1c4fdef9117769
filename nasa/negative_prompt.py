"""Encoding of the negative prompt by the pipeline's encoder, with the options of the current call."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nasa.families import Family
from nasa.lora import fingerprint_module, scale_adapters
from nasa.pipeline_call_tracker import find_encoder_method
from nasa.prompt_embeds import PromptEmbeds

REPEAT_ARGUMENTS = ("num_images_per_prompt", "num_videos_per_prompt")  # set to 1: attention repeats the negative
Prompts = str | Sequence[str] | None


@dataclass
class NegativePrompt:
    """A negative prompt, given as texts or as embeddings and their mask.

    Texts are encoded in a call of the pipeline, and again only when its options or its encoders change. `version`
    counts the encodings, so that cached keys and values can be invalidated.
    """

    pipe: Any
    family: Family
    texts: Mapping[str, Prompts] = field(default_factory=dict)  # keyed by the encoder's argument names
    max_sequence_length: int | None = None
    embeds: Tensor | None = None
    mask: Tensor | None = None
    version: int = 0
    _options: dict[str, Any] | None = None
    _encoders: list[Any] = field(default_factory=list)

    def encode_for_call(self, call: inspect.BoundArguments) -> None:
        """Encode the texts with the options of a call of the pipeline's encoder; leave the encoder unchanged."""
        if not self.texts:
            return
        options = self._replace_prompt(call)
        encoders = [getattr(self.pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
        state = [fingerprint_module(encoder) for encoder in encoders if isinstance(encoder, nn.Module)]
        if self._options is not None and state == self._encoders and _are_equal_options(self._options, options):
            return
        copies = {name: list(value) if isinstance(value, list) else value for name, value in options.items()}
        changed = inspect.BoundArguments(call.signature, copies)
        encode = getattr(self.pipe, find_encoder_method(self.pipe))
        with torch.no_grad(), scale_adapters(encoder for encoder in encoders if encoder is not None):
            self._store(self.family.unpack_prompt_embeds(encode(*changed.args, **changed.kwargs)))
        self._options, self._encoders = options, state

    def encode_with_defaults(self) -> None:
        """Encode the texts with default options, for a denoiser that is called outside its pipeline."""
        if not self.texts or self.embeds is not None:
            return
        first, *more = self.texts.values()
        assert first is not None
        if any(text is not None for text in more):
            raise ValueError(
                "negative_prompt_2, negative_prompt_3: got a text; expected None outside a pipeline's call."
            )
        with torch.no_grad():
            self._store(self.family.encode(self.pipe, _to_list(first), self.max_sequence_length))

    def _store(self, encoded: PromptEmbeds) -> None:
        self.embeds, self.mask, self.version = encoded.embeds, encoded.attention_mask, self.version + 1

    def _replace_prompt(self, call: inspect.BoundArguments) -> dict[str, Any]:
        """Return the call's arguments with the prompt replaced by the negative texts."""
        changed = {}
        for name, value in call.arguments.items():
            parameter = call.signature.parameters[name]
            if name in REPEAT_ARGUMENTS:
                value = 1
            elif name == "do_classifier_free_guidance":
                value = False
            elif name == "max_sequence_length":
                value = self.max_sequence_length or value
            elif name in self.texts:
                value = self.texts[name]
                value = None if value is None else _to_list(value)
            elif "prompt" in name:  # embeddings, masks, and the pipeline's own negative prompt
                value = None if parameter.default is parameter.empty else parameter.default
            changed[name] = value
        return changed


def _to_list(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _are_equal_options(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether all options are equal plain values; a tensor or an image always counts as different."""
    plain = (str, int, float, bool, list, torch.device, torch.dtype, type(None), dict)
    return old.keys() == new.keys() and all(
        isinstance(new[name], plain) and type(old[name]) is type(new[name]) and old[name] == new[name] for name in new
    )
