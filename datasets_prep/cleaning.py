"""Prompts as people left them, to prompts as a text encoder should see them: one rule a habit, all pure functions.

A rule changes a text only where it finds the syntax that it is about. Any other text comes back word for word, with
one space wherever there was space of any kind.
"""

import html
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import ftfy

from datasets_prep import midjourney

_SPACE = re.compile(r"\s+")
_LINE_END = str.maketrans(dict.fromkeys("\t\n\v\f\r\x1c\x1d\x1e\x1f\u2028\u2029", " "))
_NEXT_LINE = re.compile(r"(?<![\xc2-\xdf])(?<![\xe0-\xef][\x80-\xbf])\x85(?![\x80-\xbf])")  # no byte of mojibake
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff9-\ufffd]"
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"  # joiners that join neither letters nor emoji
)
_REPAIR = ftfy.TextFixerConfig(
    unescape_html=False, uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, explain=False
)
_INLINE = "a abbr b big cite code del em font i ins kbd mark q s small span strike strong sub sup tt u var"
_BLOCK = """
article aside blockquote body br center dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr
html iframe img input li link meta nav noscript ol option p pre section select table tbody td tfoot th thead tr ul wbr
"""
_ATTRIBUTES = r"(?:\s[^<>]*)?/?"
_IN_WORDS = re.compile(rf"</?(?:{'|'.join(_INLINE.split())}){_ATTRIBUTES}>", re.IGNORECASE)
_BETWEEN_WORDS = re.compile(
    rf"<(script|style)\b[^<>]*>.*?</\1\s*>|<!--.*?-->|<!doctype\b[^<>]*>|</?(?:{'|'.join(_BLOCK.split())}){_ATTRIBUTES}>",
    re.IGNORECASE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_EDGES = " \t\n,;:|*_-\"'`"


def without_html(text: str) -> str:
    """Return the text of an HTML fragment: no tags, comments and scripts, entities as characters.

    What stands in angle brackets and is no element of HTML, such as the token `<sks>`, is text.
    """
    if "<" in text:
        text = _IN_WORDS.sub("", _BETWEEN_WORDS.sub(" ", text))
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def normalised(text: str) -> str:
    """Unicode in its composed form (NFC), with mojibake repaired and without characters that cannot be seen.

    Of zero-width joiners those stay that stand between letters of other scripts than ours or within an emoji.
    """
    if text.isascii() and text.isprintable():  # there is nothing to repair
        return text
    text = _NEXT_LINE.sub(" ", text.translate(_LINE_END))
    if not text.isascii() or "\x1b" in text:
        text = ftfy.fix_text(text, _REPAIR)
    return _INVISIBLE.sub("", text)


def one_space(text: str) -> str:
    """Replace line ends, tabs and runs of space by one space, and strip the ends."""
    return " ".join(text.split())


SYNTAX: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "HTML": without_html,
        "/imagine prompt:": midjourney.without_command,
        "Discord's caption": midjourney.without_caption,
        "address": midjourney.without_addresses,
        "<lora:name:1>": midjourney.without_networks,
        "(words:1.2)": midjourney.without_emphasis,
        "{a, b}": midjourney.without_choices,
        "--no": midjourney.without_avoided,
        "--parameter": midjourney.without_parameters,
        "::weight": midjourney.without_weights,
    }
)
"""Rules that remove what is no text, by what they remove, in the order in which they are applied."""
CHARACTERS = "broken or invisible characters"
SPACE = "line ends and repeated space"
RULES = (CHARACTERS, *SYNTAX, SPACE)
Change = tuple[str, str, str]


def clean(text: str) -> str:
    """Return the text after all rules."""
    return cleaned(text)[0]


def cleaned(text: str) -> tuple[str, list[Change]]:
    """Return the text after all rules, and each rule's change: rule, text before, text after."""
    changes: list[Change] = []
    whole = normalised(text)
    if whole != text and (whole := one_space(whole)) != one_space(text):
        changes.append((CHARACTERS, text, whole))
    result = whole
    for name, rule in SYNTAX.items():
        after = rule(result)
        if after != result:
            changes.append((name, result, after))
            result = after
    if result is not whole:
        return tidied(result), changes
    result = one_space(whole)
    if not changes and result != text.strip():
        changes.append((SPACE, text, result))
    return result, changes


def tidied(text: str) -> str:
    """Tidy the space and separators that a rule left around what it removed."""
    text = re.sub(r"\s+([,;.])(?=\s|$)", r"\1", one_space(normalised(text)))
    text = re.sub(r"([,;])(?:\s*[,;])+", r"\1", text).strip(" ,;:|")
    return re.sub(r"^[-\u2013\u2014]\s+|\s+[-\u2013\u2014]$|\s+(?=[\"\u201d)]$)", "", text)


def negatives_of(text: str) -> list[str]:
    """Return the negative terms of a Midjourney prompt's `--no`."""
    return [term for term in map(collapse, midjourney.avoided(text).split(",")) if term]


def collapse(text: str) -> str:
    """Put one space between words and none before a comma, and strip separators at the ends."""
    text = _SPACE.sub(" ", text)
    text = re.sub(r"\s+([,;])", r"\1", text)
    return re.sub(r"([,;])(?:\s*[,;])+", r"\1", text).strip(_EDGES)
