"""The bodies of the image API: OpenAI's image generation, and what a negative prompt needs besides."""

import re
import secrets
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from pipeline.errors import UserError, invalid
from pipeline.generation.image_request import (
    ImageRequest,
    Method,
    Prompt,
    Scale,
    Seed,
    Text,
    choose_scale,
    offset_seed,
)
from pipeline.strict_model import build_user_error

MAX_IMAGES = 10  # of one request, as in OpenAI's API
MAX_MESSAGE = 400  # characters of an error, which repeats the value


class ImagesRequest(BaseModel):
    """A request for images that differ in their seeds alone."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: Prompt = Field(description="what the images show")
    negative_prompt: Text = Field("", description="what the images must not show")
    model: str | None = Field(None, description="the served model's name; without it, whichever is served")
    n: int = Field(1, ge=1, le=MAX_IMAGES, description="number of images, with the seeds `seed`, `seed + 1`, ...")
    size: str = Field("auto", description='"auto", or the model\'s own size, such as "512x512"')
    response_format: Literal["b64_json"] = Field("b64_json", description="PNG in Base64; or send `Accept: image/png`")
    seed: Seed | None = Field(None, description="seed of the first image; random by default")
    scale: Scale | None = Field(None, description="strength; by default the one that evaluation chose")
    method: Method = Field("nasa", description="attention rule, or classifier-free guidance")
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False, description="seconds after which to give up")
    user: str | None = Field(None, max_length=256, description="accepted for OpenAI's clients, and ignored")

    def build_image_requests(self) -> list[ImageRequest]:
        """Return one request an image; a scale of None is left to the version that serves it."""
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        scale = choose_scale(self.method, self.scale)
        seeds = [offset_seed(seed, number) for number in range(self.n)]
        return [ImageRequest(self.prompt, seed, self.negative_prompt, scale, self.method) for seed in seeds]


def parse_images_request(values: JsonValue) -> ImagesRequest:
    """Return the request of a JSON body.

    Raises:
        ImageRequestError: naming the first field that is not accepted.
    """
    try:
        return ImagesRequest.model_validate(values)
    except ValidationError as error:
        raise ImageRequestError(str(build_user_error(error.errors()[0], ImagesRequest))) from None


class ImageRequestError(UserError):
    """A request that is not accepted; `field` is the name of its first wrong field, if there is one."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}...")

    @property
    def field(self) -> str | None:
        """The field that the message begins with."""
        found = re.match(r"(\w+)[\[.:]", str(self))
        return found.group(1) if found else None


def check_size(size: str, served: tuple[int, int]) -> None:
    """Reject a size other than the model's own, at which alone a few-step student was trained.

    Raises:
        ImageRequestError: naming the size.
    """
    own = "{}x{}".format(*served)
    if size not in ("auto", own):
        raise ImageRequestError(str(invalid("size", size, f"auto or {own}, the model's own size")))


def explain_missing_effect(request: ImagesRequest, scale: float) -> str | None:
    """Return why the negative prompt has no effect on these images, or None."""
    if "negative_prompt" not in request.model_fields_set:
        return None
    if not request.negative_prompt:
        return "negative_prompt: it is empty, so it had no effect."
    if scale == 0:
        return "negative_prompt: it had no effect, as the scale is 0."
    return None


class GeneratedImageBody(BaseModel):
    """One image of an answer."""

    b64_json: str = Field(description="PNG in Base64")
    seed: int
    version: str = Field(description="the version of the model that made it")
    scale: float = Field(description="the scale that was applied; 0 is none")


class ImagesAnswer(BaseModel):
    """An answer with images."""

    created: int
    model: str
    data: list[GeneratedImageBody]
    warnings: list[str] = Field(description="what the request asked for and had no effect")


class ErrorBody(BaseModel):
    """An error as OpenAI's API has it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None

    def to_answer(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": self.model_dump()}
