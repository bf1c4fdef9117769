"""The section of a recipe that says where its notifications go."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import model_validator

from pipeline.recipe.section import Section, build_validator
from pipeline.redaction import is_secret

Event = Literal["promoted", "challenger", "failed", "diverged", "missed"]
EVENTS: tuple[Event, ...] = ("promoted", "challenger", "failed", "diverged", "missed")


def is_web_address(text: str) -> bool:
    """Tell whether a text is an http:// or https:// address with a host, and without a user name."""
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and has_host and "@" not in parts.netloc and text.isprintable()


WebAddress = Annotated[
    str,
    build_validator(lambda url: not url or is_web_address(url), "an http:// or https:// address with no user name"),
]
SecretVariable = Annotated[
    str, build_validator(lambda name: not name or is_secret(name), "a name with SECRET or TOKEN, which logs mask")
]


class Notify(Section):
    """A webhook: one HTTP POST of JSON for each event of a run. Nothing is sent without an address."""

    url: WebAddress = ""
    """http:// or https:// address that events are sent to; empty: none. Manifests and MLflow show it"""
    url_variable: SecretVariable = ""
    """environment variable that holds the address instead, if the address itself is a secret"""
    secret_variable: SecretVariable = "NASA_DISTILL_NOTIFY_SECRET"
    """environment variable that holds the key of the signature; not set: events are not signed"""
    events: tuple[Event, ...] = EVENTS
    """events that are sent"""

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if self.url and self.url_variable:
            raise ValueError(f"url_variable: got {self.url_variable!r}; expected none beside url.")
        return self
