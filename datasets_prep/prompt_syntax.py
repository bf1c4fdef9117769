"""Syntax of prompt tools, Midjourney and AUTOMATIC1111, only in the form that these define.

Midjourney: https://docs.midjourney.com/hc/en-us/articles/32859204029709-Parameter-List. A parameter is a whole token
(`--ar 3:2`), whose dash an editor may have replaced by another one; anything else is text and is kept. A parameter that
is attached to a word must have a value and end the text, or be a ratio. Without a value it must end the text.
"""

import re
from collections.abc import Iterable

_DASH = "(?:--|\u2014|\u2013)"
_START = r"(?:^|(?<=\s))"
_END = rf"(?=[\s,.;)\]\"']|$|{_DASH}[a-zA-Z])"
_IS = r"\s*=?\s*"
_NUMBER = r"-?\d*\.?\d+(?:,\d{3})*%?"
_RATIO = r"\d+(?:\.\d+)?[:/x]\d+(?:\.\d+)?"
_NUMERIC = """
ar aspect bs c chaos creative cw exp fps h hd ihd iw n niji ow q quality r repeat s sameseed seed stop stylize sv sw
testp upbeta v version video vibe w weird zoom
"""
_WORDED = "cref dref end motion oref p personalize profile sref start style"
_FLAGS = "beta draft fast loop public raw relax stealth test tile turbo upanime uplight upbeat"
_KEYWORDS = "raw|cute|scenic|expressive|original|random|low|high|loop"
PARAMETERS = tuple(f"{_NUMERIC} {_WORDED} {_FLAGS}".split())


def _join(names: Iterable[str]) -> str:
    return "|".join(sorted(names, key=len, reverse=True))


_VALUE = rf"(?:{_KEYWORDS}|https?://\S+|[\w.:/-]*\d[\w.:/-]*)"
_LAST = rf"(?=[\s,.;)\]\"']*(?:$|{_DASH}(?:no|{_join(PARAMETERS)})\b))"  # nothing but parameters, to the end
_NUMBERED = _join(_NUMERIC.split())
_WITH_NUMBER = rf"{_DASH}(?:{_NUMBERED}){_IS}(?:{_RATIO}|{_NUMBER}){_END}"
_NAMED = _join(_WORDED.split())
_WITH_WORD = rf"(?:{_DASH}(?:{_NAMED})(?:(?:=|\s+){_VALUE}{_END})+|--(?:{_NAMED})\s+[\w:/.-]+{_LAST})"
_VALUED = f"(?:{_WITH_NUMBER}|{_WITH_WORD})"
_BARE = rf"{_DASH}(?:{_join(PARAMETERS)}){_LAST}"
_ATTACHED = (
    rf"(?<=[^\W\d_]|[,;.)\]])(?:{_DASH}(?:ar|aspect){_IS}{_RATIO}{_END}|--(?:{_NUMBERED}){_IS}{_NUMBER}{_END}{_LAST})"
)
_BRACKETED = rf"(?:\((?:\s*{_VALUED})+\s*\)|\[(?:\s*{_VALUED})+\s*\])"
_PARAMETER = re.compile(
    rf"{_BRACKETED}|(?:{_START}(?:{_VALUED}|{_BARE})|{_ATTACHED})(?:\s*{_VALUED}|\s*{_BARE})*", re.IGNORECASE
)
_CERTAIN = re.compile(rf"{_START}{_VALUED}|{_ATTACHED}", re.IGNORECASE)
_NO_PARAMETER = re.compile(
    rf"(?:{_START}|(?<=\d)(?P<attached>))(?P<dash>{_DASH})no(?=\s|$)\s*(?P<terms>.*?)"
    rf"(?=\s{_DASH}[a-zA-Z]|{_DASH}(?:{_NUMBERED}){_IS}\d|$)",
    re.IGNORECASE | re.DOTALL,
)
_IDIOM = re.compile(  # a sentence that contains a dash: "--no one knew", "--no surprise"
    r"(?:(?:one|longer|matter|doubt|wonder|sooner|less)\b"
    r"|(?:and|but|or|not|he|she|it|they|we|i|you)\b"
    r"|(?:big deal|chance|excuses?|exceptions?|hard feelings|idea|joke|kidding|more|need|problem|pun intended"
    r"|questions?(?: asked)?|reason|surprises?|thanks?(?: you)?|trouble|turning back|use|way|worries)\W*$)",
    re.IGNORECASE,
)
_MAX_TERM_WORDS = 4  # if nothing else shows that it is a term
_COMMAND = re.compile(r"^\s*/imagine(?:\s+prompt)?(?:\s*:|(?=\s)|$)\s*", re.IGNORECASE)
_URL = re.compile(r"<?\bhttps?://[^\s<>]*[^\s<>,;.!?)\]}\"']>?", re.IGNORECASE)
_GLUED = r"(?<=\s)::\d*\.?\d+(?=[^\W\d_])|(?<=[^\s:])::\d*\.\d+(?=[^\W\d_])"  # text up to the next word
_WEIGHT = re.compile(rf"(?:(?<=[^\s:])::(?:\s*{_NUMBER})?|(?<=\s)::\s?{_NUMBER})(?!\.\d)(?=[\s,.;]|$)|{_GLUED}")
_CHOICE = re.compile(r"(?<!\\)\{([^{}]*(?<!\\),[^{}]*)\}")
_OPTION_END = re.compile(r"(?<!\\),")
_MENTION = r"<?@[^\s*]+"
_ACTION = r"(?:Variations|Upscaled|Remix|Remaster|Zoom Out|Pan(?: (?:Left|Right|Up|Down))?|Image #\d)(?: \([^()]*\))?"
_SPEED = r"\((?:fast|relaxed|turbo|metered)\b[^()]*\)"
_CREDIT = rf"(?:\s+-\s+(?:{_ACTION}(?: by)? {_MENTION}(?:\s*\([^()]*\))*|{_MENTION}\s*{_SPEED}))\s*$"
_CAPTION = re.compile(_CREDIT)
_BOLD = re.compile(rf"^\s*\*\*(?P<prompt>(?:(?!\*\*).)+)\*\*(?:\s*$|{_CREDIT})", re.DOTALL)
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE)
_EMPHASIS = re.compile(
    r"(?<!\\)\(((?:[^()\\:]|\\.|:(?!\s*[\d.])|(?<=\d):(?=\d)(?![\d.]+\s*\)))*?(?:[^\d\s\\():]|\\.))\s*:(?:\d*\.\d+|\d)\s*\)"
)


def remove_command(text: str) -> str:
    """Remove Discord's `/imagine prompt:`."""
    return _COMMAND.sub("", text) if "/" in text else text


def remove_discord_caption(text: str) -> str:
    """Remove the caption of Midjourney's Discord bot: bold type, and ` - Upscaled by @name (fast)`."""
    if "**" in text and (bold := _BOLD.match(text)):
        return bold["prompt"]
    return _CAPTION.sub("", text) if " - " in text else text


def remove_urls(text: str) -> str:
    """Remove URLs, such as those of image prompts."""
    return _URL.sub(" ", text) if "://" in text else text


def resolve_choices(text: str) -> str:
    """Replace `{a, b}`, which Midjourney expands to one prompt per option, by its first option."""
    if "{" in text:
        while (chosen := _CHOICE.sub(_get_first_option, text)) != text:
            text = chosen
    return text


def _get_first_option(choice: re.Match[str]) -> str:
    return _OPTION_END.split(choice[1])[0].replace("\\,", ",")


def remove_no_parameter(text: str) -> str:
    """Remove `--no` with its terms."""
    if not _has_dash(text):
        return text
    is_prompt = _CERTAIN.search(text) is not None
    return _NO_PARAMETER.sub(lambda match: " " if _is_term_list(match, is_prompt) else match[0], text)


def _is_term_list(match: re.Match[str], is_prompt: bool) -> bool:
    """Tell whether a list of terms follows `--no`; `is_prompt` if another parameter shows that it is a prompt."""
    terms = [term.split() for term in match["terms"].split(",")]
    if _IDIOM.match(match["terms"]):
        return False
    if is_prompt:
        return True
    if match["attached"] is not None:
        return False
    if match["dash"] != "--":
        return len(terms) > 1 and all(len(term) == 1 for term in terms)
    return all(len(term) <= _MAX_TERM_WORDS for term in terms)


def remove_parameters(text: str) -> str:
    """Remove the parameters (`--ar 3:2`) other than `--no`."""
    return _PARAMETER.sub(" ", text) if _has_dash(text) else text


def remove_weights(text: str) -> str:
    """Remove the weights of a prompt's parts (`a fox::2 in snow::0.5`)."""
    return _WEIGHT.sub(" ", text) if "::" in text else text


def remove_lora_tags(text: str) -> str:
    """Remove the names of LoRA and hypernetwork weights (`<lora:name:0.8>`)."""
    return _NETWORK.sub(" ", text) if "<" in text else text


def remove_emphasis(text: str) -> str:
    """Replace `(words:1.2)` by its words."""
    if ":" in text and "(" in text:
        while (plain := _EMPHASIS.sub(r"\1", text)) != text:
            text = plain
    return text


def _has_dash(text: str) -> bool:
    return "--" in text or "\u2014" in text or "\u2013" in text
