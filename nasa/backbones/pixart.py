"""PixArt-alpha and the one-step models made from it: YOSO, PixArt-DMD, SwiftBrush on PixArt."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from nasa.backbones.base import Backbone, Text

MAX_SEQUENCE_LENGTH = 120  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> Text:
    embeds, mask, *_ = pipe.encode_prompt(
        prompts,
        do_classifier_free_guidance=False,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return embeds, mask


def project(model: Any, text: Tensor) -> Tensor:
    projected: Tensor = model.caption_projection(text)
    return projected


@contextmanager
def guidance(pipe: Any) -> Iterator[Callable[[], bool]]:
    """This pipeline keeps the answer in a local variable, and tells it to `encode_prompt` alone."""
    plain, state = pipe.encode_prompt, {"guided": False}
    signature = inspect.signature(plain)

    def listening(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        state["guided"] = bool(call.arguments["do_classifier_free_guidance"])
        return plain(*args, **kwargs)

    pipe.encode_prompt = listening
    try:
        yield lambda: state["guided"]
    finally:
        del pipe.encode_prompt


PIXART = Backbone(
    model_class="PixArtTransformer2DModel",
    attribute="transformer",
    encode=encode,
    project=project,
    guidance=guidance,
)
