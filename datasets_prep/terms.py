"""Words that filters look for. Whole words, in lower case, with digits that stand for letters read as letters."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

EXPLICIT = frozenset(
    """
    nude nudes nudity naked nsfw porn porno pornographic pornography xxx hentai ecchi erotic erotica erotism
    topless bottomless nipple nipples areola genitals genitalia penis penises vagina vaginal vulva clitoris
    labia testicles scrotum pussy cunt boobs titties tits cum cumshot creampie orgasm orgasmic masturbating
    masturbation masturbate fellatio blowjob handjob cunnilingus rimjob intercourse gangbang threesome
    deepthroat dildo vibrator bukkake futanari milf striptease stripper undressed unclothed upskirt camgirl
    onlyfans rape raped raping incest bestiality zoophilia
    """.split()  # noqa: SIM905
)
"""Sexual beyond doubt; and what no prompt should train."""

SUGGESTIVE = frozenset(
    """
    sex sexual sexually sexy sexualized lewd lingerie panties thong underwear bra bikini swimsuit busty cleavage breast
    breasts bosom butt buttocks ass arse crotch groin cock dick horny aroused seductive seductively seducing provocative
    sensual sultry voluptuous fetish bdsm bondage dominatrix kinky submissive undressing stripping bathing shirtless
    """.split()  # noqa: SIM905
)
"""Sexual in some company; enough for the block on minors, not for the NSFW filter."""

MINORS = frozenset(
    """
    child children childlike kid kids minor minors underage preteen preteens teen teens teenage teenager teenagers
    adolescent adolescents prepubescent pubescent toddler toddlers infant infants baby babies newborn juvenile
    schoolgirl schoolgirls schoolboy schoolboys schoolchild schoolchildren schoolkid schoolkids highschooler
    highschoolers preteenager preteenagers underaged kindergartner preschooler tween tweens lolita youngster
    """.split()  # noqa: SIM905
)
BLOCKED = frozenset(["loli", "lolis", "lolicon", "shota", "shotas", "shotacon", "jailbait", "pedophile", "pedophilia"])
_TERMS = EXPLICIT | SUGGESTIVE | MINORS | BLOCKED
_LONGEST = max(map(len, _TERMS))

_DISGUISES = "0134578@$"
_READ_AS = (str.maketrans(_DISGUISES, "oieastbas"), str.maketrans(_DISGUISES, "oleastbas"))  # 1 is an i or an l
_WORD = re.compile(r"[^\W\d_]+")
_TOKEN = re.compile(r"[^\W_@$]*[\d@$][\w@$]*")
_APART = r"(?:[\s._*/|,~+-]{1,3})"
_LETTER = r"(?:[^\W_]|[@$])"
_ALONE = r"(?![^\W_]|[@$'\u2019])"
_SPELLED = re.compile(
    rf"(?<![^\W_])(?<![@$'\u2019]){_LETTER}(?:(?:{_APART}{_LETTER}{_ALONE}){{2,}}|(?:'{_LETTER}(?![^\W_]|[@$])){{2,}})"
)
_YOUNG = re.compile(
    r"\b(?:(?:little|young|small|tiny|(?:(?:high|middle|grade|elementary|primary|junior)[\s-]?)?school(?:[\s-]aged?)?)"
    r"[\s-]+(?:girl|boy|daughter|son|sister|brother)s?|(?:high|middle|grade|elementary|primary)[\s-]?school[\s-]+"
    r"(?:student|pupil)s?|(?:high|middle|grade)[\s-]?schoolers?|under[\s-]aged?|(?:under|below)[\s-](?:18|eighteen)"
    r"|\d{1,2}[\s-]*months?[\s-]+olds?)\b"
)
_TEENS = "thirteen fourteen fifteen sixteen seventeen"
_NUMBER = "|".join(f"one two three four five six seven eight nine ten eleven twelve {_TEENS}".split())
_TENS = "(?:(?P<tens>twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)[\\s-]+)?"
_YO = r"y\.?\s?/?o"
_DRINK = "(?:whiske?y|scotch|bourbon|malt|wine|rum|cheddar|cheese)"
_NO_AGE = rf"(?!\s+(?:ago|later)\b|[\s-]+old[\s-]+{_DRINK}\s*(?:[,.;]|$))"
_AGE = re.compile(
    rf"\b(?:(?P<digits>\d{{1,2}})\s*-?\s*(?:years?|yrs?|{_YO})\b{_NO_AGE}"
    r"|(?:aged?(?:\s*[:=]\s*|\s+(?:of\s+)?)|(?:girl|boy|daughter|son)s?\s+of\s+)(?P<aged>\d{1,2})\b"
    rf"|{_TENS}(?:{_NUMBER})[\s-]+(?:(?:years?|yrs?)[\s-]+(?:olds?|of\s+age)|{_YO})\b{_NO_AGE}"
    rf"|(?:aged|age\s+of|(?:girl|boy|daughter|son)s?\s+of)\s+(?:{_NUMBER})\b(?!['\u2019]))"
)
_HARMLESS = re.compile(
    r"\b(?:(?:chicken|duck|turkey)\s+breasts?|dick\s+(?:van\s+dyke|tracy)|moby[\s-]dick|philip\s+k\.?\s+dick"
    r"|sex\s+education\s+(?:class|curriculum|infographic|pamphlet|poster|textbook)"
    r"|baby[\s-](?:blue|pink)\s+(?=(?:bra|bikini|swimsuit|lingerie|underwear)\b))"
)
"""Phrases that are neither sexual nor of a minor, by the words in them alone. They count beside an explicit term."""
ADULT = 18  # years


def words(text: str) -> frozenset[str]:
    """Return the words of a text, including disguised ones (`nud3`, `n u d e`)."""
    folded = _folded(text)
    found = _WORD.findall(folded)
    if any(c in folded for c in _DISGUISES):
        found += _disguised(folded)
    if sum(len(word) == 1 for word in found) > 1:
        found += _spelled(_SPELLED.findall(folded))
    return frozenset(found)


def _folded(text: str) -> str:
    """Return the text in lower case, without accents and fullwidth letters."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _disguised(folded: str) -> Iterator[str]:
    """Yield readings of tokens that have digits or signs for some of their letters."""
    for token in _TOKEN.findall(folded):
        if any(c.isalpha() for c in token):
            for table in _READ_AS:
                yield from _WORD.findall(token.translate(table))


def _spelled(runs: Sequence[str]) -> Iterator[str]:
    """Yield the terms within runs of single letters; only neighbours are joined, never across a word.

    Of the letters half or more must be letters: `n u d 3`, not the sizes `a 5 5`. The same one again and again, as in
    a game of noughts and crosses, spells nothing.
    """
    for run in runs:
        letters = [c for c in run if c.isalnum() or c in "@$"]
        for first in range(len(letters)):
            for last in range(first + 3, min(len(letters), first + _LONGEST) + 1):
                part = "".join(letters[first:last])
                if 2 * sum(c.isalpha() for c in part) >= len(part) and len(set(part)) > 1:
                    yield from (read for table in _READ_AS if (read := part.translate(table)) in _TERMS)


def explicit(text: str) -> bool:
    """Tell whether a text has a sexual term."""
    return not EXPLICIT.isdisjoint(words(text))


def sexual_about_minors(text: str) -> bool:
    """Tell whether a prompt has a sexual term and one for a minor; it errs on the side of blocking."""
    return bool(evidence(text))


def evidence(text: str) -> tuple[str, ...]:
    """Return the terms for which a prompt is blocked as sexual about minors.

    Empty where it is not.
    """
    found = words(text)
    if both := BLOCKED & found:
        return (min(both),)
    if EXPLICIT.isdisjoint(found) and (plain := _HARMLESS.sub("thing ", _folded(text))) != _folded(text):
        found = words(plain)
    sexual = (EXPLICIT | SUGGESTIVE) & found
    minor = sexual and _minor(found, text)
    return (min(sexual), minor) if minor else ()


def _minor(found: frozenset[str], text: str) -> str:
    folded = _folded(text)
    if named := MINORS & found:
        return min(named)
    if young := _YOUNG.search(folded):
        return young[0]
    return next((each[0] for each in _AGE.finditer(folded) if _is_below_adult(each)), "")


def _is_below_adult(age: re.Match[str]) -> bool:
    """Tell whether a number word means less than eighteen."""
    digits = age["digits"] or age["aged"]
    return int(digits) < ADULT if digits else not age["tens"]
