"""Cleaning of prompts for the text encoder: one pure function per kind of syntax.

A rule changes a text only where it finds its syntax. Other text is kept word for word, with runs of space collapsed.
"""

import html
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import ftfy

from datasets_prep import prompt_syntax

_SPACE = re.compile(r"\s+")
_LINE_END = str.maketrans(dict.fromkeys("\t\n\v\f\r\x1c\x1d\x1e\x1f\u2028\u2029", " "))
_NEXT_LINE = re.compile(
    r"(?<![\xc2-\xdf])(?<![\xe0-\xef][\x80-\xbf])\x85(?![\x80-\xbf])"
)  # except as a byte of mojibake
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


def remove_html(text: str) -> str:
    """Return the text of an HTML fragment: no tags, comments and scripts, entities as characters.

    Angle brackets that are not an HTML element, such as the token `<sks>`, are text.
    """
    if "<" in text:
        text = _IN_WORDS.sub("", _BETWEEN_WORDS.sub(" ", text))
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text


def normalise_unicode(text: str) -> str:
    """Return text in Unicode's composed form (NFC), with mojibake repaired and invisible characters removed.

    Zero-width joiners stay between letters of non-Latin scripts and within emoji.
    """
    if text.isascii() and text.isprintable():  # there is nothing to repair
        return text
    text = _NEXT_LINE.sub(" ", text.translate(_LINE_END))
    if not text.isascii() or "\x1b" in text:
        text = ftfy.fix_text(text, _REPAIR)
    return _INVISIBLE.sub("", text)


def collapse_spaces(text: str) -> str:
    """Replace line ends, tabs and runs of space by one space, and strip the ends."""
    return " ".join(text.split())


SYNTAX: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "HTML": remove_html,
        "/imagine prompt:": prompt_syntax.remove_command,
        "Discord's caption": prompt_syntax.remove_discord_caption,
        "address": prompt_syntax.remove_urls,
        "<lora:name:1>": prompt_syntax.remove_lora_tags,
        "(words:1.2)": prompt_syntax.remove_emphasis,
        "{a, b}": prompt_syntax.resolve_choices,
        "--no": prompt_syntax.remove_no_parameter,
        "--parameter": prompt_syntax.remove_parameters,
        "::weight": prompt_syntax.remove_weights,
    }
)
"""Rules that remove syntax, by what they remove, in the order of application."""
CHARACTERS = "broken or invisible characters"
SPACE = "line ends and repeated space"
RULES = (CHARACTERS, *SYNTAX, SPACE)
Change = tuple[str, str, str]


def clean(text: str) -> str:
    """Return the text after all rules."""
    return clean_with_changes(text)[0]


def clean_with_changes(text: str) -> tuple[str, list[Change]]:
    """Return the text after all rules, and each rule's change: rule, text before, text after."""
    changes: list[Change] = []
    normalised = normalise_unicode(text)
    if normalised != text and (normalised := collapse_spaces(normalised)) != collapse_spaces(text):
        changes.append((CHARACTERS, text, normalised))
    result = normalised
    for name, rule in SYNTAX.items():
        after = rule(result)
        if after != result:
            changes.append((name, result, after))
            result = after
    if result is not normalised:
        return tidy_separators(result), changes
    result = collapse_spaces(normalised)
    if not changes and result != text.strip():
        changes.append((SPACE, text, result))
    return result, changes


def tidy_separators(text: str) -> str:
    """Tidy the space and separators that are left around removed syntax."""
    text = re.sub(r"\s+([,;.])(?=\s|$)", r"\1", collapse_spaces(normalise_unicode(text)))
    text = re.sub(r"([,;])(?:\s*[,;])+", r"\1", text).strip(" ,;:|")
    return re.sub(r"^[-\u2013\u2014]\s+|\s+[-\u2013\u2014]$|\s+(?=[\"\u201d)]$)", "", text)


def normalise_term(text: str) -> str:
    """Put one space between words and none before a comma, and strip separators at the ends."""
    text = _SPACE.sub(" ", text)
    text = re.sub(r"\s+([,;])", r"\1", text)
    return re.sub(r"([,;])(?:\s*[,;])+", r"\1", text).strip(_EDGES)
