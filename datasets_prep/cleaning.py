"""Prompts as people left them, to prompts as a text encoder should see them: one function a habit, all pure."""

import html
import re

import ftfy
import nh3

_URL = re.compile(r"<?\b(?:https?://|www\.)[^\s<>]+>?", re.IGNORECASE)
_DASH = "(?:--|\u2014|\u2013)"
_PARAMETER = re.compile(rf"(?:^|(?<=\s)){_DASH}(?P<name>[a-zA-Z]+)(?P<value>\s+-?[\d.][\d.:,/x%]*(?=\s|$))?")
_WORD_PARAMETER = re.compile(
    rf"(?:^|(?<=\s)){_DASH}(?:style|sref|cref|profile|p|personalize)\s+[\w:/.-]+(?=\s|$)", re.IGNORECASE
)
_AVOIDED = re.compile(rf"(?:^|(?<=\s)){_DASH}no\s+(?P<terms>.*?)(?=\s{_DASH}[a-zA-Z]|$)", re.IGNORECASE)
_WEIGHT = re.compile(r"::\s*-?\d*\.?\d*")
_CHOICE = re.compile(r"\{([^{}]*)\}")
_SUFFIX = re.compile(r"\s*-\s*(?:Variations|Upscaled|Image #\d|Remix|Zoom Out|Pan|@\S+).*$", re.IGNORECASE)
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff9-\ufffd]"
)
_SPACE = re.compile(r"\s+")
_EDGES = " \t\n,;:|*_-\"'`"
_PARAMETERS = """
ar aspect c chaos cref cw creative exp fast hd ihd iw n niji ow p personalize profile q quality raw relax repeat r s
sameseed seed sref stop style stylize sv sw test testp tile turbo uplight upbeta v version vibe video w weird
"""
PARAMETERS = frozenset(_PARAMETERS.split())


def clean(text: str) -> str:
    """Midjourney's syntax, HTML, broken encodings and stray space removed. Cleaning twice changes nothing more."""
    return collapse(without_midjourney(without_html(normalised(text))))


def normalised(text: str) -> str:
    """Unicode in its composed form (NFC), with mojibake repaired and without characters that cannot be seen."""
    if not text.isascii() or "\x1b" in text:  # of others there is nothing to repair
        text = ftfy.fix_text(text, uncurl_quotes=False, unescape_html=False)
    return _INVISIBLE.sub("", text)


def without_html(text: str) -> str:
    """The text of a fragment of HTML: no tags, no comments, no scripts, entities as the characters they name."""
    if "<" in text:
        text = nh3.clean(_URL.sub(" ", text), tags=set(), attributes={})
    return html.unescape(text) if "&" in text else text


def without_midjourney(text: str) -> str:
    """No parameters (`--ar 3:2`), weights (`::0.5`), addresses of images; of `{a, b}` the first."""
    text = _URL.sub(" ", text)
    while (chosen := _CHOICE.sub(lambda found: found[1].split(",")[0], text)) != text:
        text = chosen
    if any(dash in text for dash in "-\u2014\u2013"):
        text = _WORD_PARAMETER.sub(" ", _AVOIDED.sub(" ", text))
        text = _SUFFIX.sub("", _PARAMETER.sub(_drop_parameter, text))
    return _WEIGHT.sub(" ", text).replace("**", " ")


def _drop_parameter(found: re.Match[str]) -> str:
    return " " if found["name"].lower() in PARAMETERS else found[0]


def negatives_of(text: str) -> list[str]:
    """What a Midjourney prompt was to avoid: the terms of its `--no`."""
    found = _AVOIDED.search(text)
    terms = found["terms"].split(",") if found else []
    return [term for term in map(collapse, terms) if term]


def collapse(text: str) -> str:
    """One space between words, none before a comma, no separators at the ends."""
    text = _SPACE.sub(" ", text)
    text = re.sub(r"\s+([,;])", r"\1", text)
    return re.sub(r"([,;])(?:\s*[,;])+", r"\1", text).strip(_EDGES)
