"""Word lists of the filters, compared as whole lower-case words; digits that stand for letters are read as letters."""

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
"""Unambiguously sexual terms, and terms that no prompt should contain."""

SUGGESTIVE = frozenset(
    """
    sex sexual sexually sexy sexualized lewd lingerie panties thong underwear bra bikini swimsuit busty cleavage breast
    breasts bosom butt buttocks ass arse crotch groin cock dick horny aroused seductive seductively seducing provocative
    sensual sultry voluptuous fetish bdsm bondage dominatrix kinky submissive undressing stripping bathing shirtless
    """.split()  # noqa: SIM905
)
"""Terms that are sexual in some contexts; only the filter for sexual content about minors counts them."""

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
"""Phrases that are neither sexual nor about a minor, despite their words, unless the text also has an explicit term."""
ADULT = 18  # years


def extract_words(text: str) -> frozenset[str]:
    """Return the words of a text, including disguised ones (`nud3`, `n u d e`)."""
    folded = _fold(text)
    tokens = _WORD.findall(folded)
    if any(c in folded for c in _DISGUISES):
        tokens += _read_disguised_words(folded)
    if sum(len(word) == 1 for word in tokens) > 1:
        tokens += _join_spelled_terms(_SPELLED.findall(folded))
    return frozenset(tokens)


def _fold(text: str) -> str:
    """Return the text in lower case, without accents and fullwidth letters."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _read_disguised_words(folded: str) -> Iterator[str]:
    """Yield readings of tokens that have digits or signs for some of their letters."""
    for token in _TOKEN.findall(folded):
        if any(c.isalpha() for c in token):
            for table in _READ_AS:
                yield from _WORD.findall(token.translate(table))


def _join_spelled_terms(runs: Sequence[str]) -> Iterator[str]:
    """Yield the terms within runs of single letters; only neighbours are joined, never across a word.

    At least half of the characters must be letters: `n u d 3`, not the sizes `a 5 5`. A run of one repeated character,
    as in noughts and crosses, spells nothing.
    """
    for run in runs:
        letters = [c for c in run if c.isalnum() or c in "@$"]
        for start in range(len(letters)):
            for end in range(start + 3, min(len(letters), start + _LONGEST) + 1):
                part = "".join(letters[start:end])
                if 2 * sum(c.isalpha() for c in part) >= len(part) and len(set(part)) > 1:
                    yield from (read for table in _READ_AS if (read := part.translate(table)) in _TERMS)


def is_explicit(text: str) -> bool:
    """Tell whether a text has a sexual term."""
    return not EXPLICIT.isdisjoint(extract_words(text))


def is_sexual_about_minors(text: str) -> bool:
    """Tell whether a prompt has a sexual term and a term for a minor; errs on the side of blocking."""
    return bool(find_blocking_terms(text))


def find_blocking_terms(text: str) -> tuple[str, ...]:
    """Return the terms for which a prompt is blocked as sexual about minors; empty if it is not blocked."""
    terms = extract_words(text)
    if blocked := BLOCKED & terms:
        return (min(blocked),)
    if EXPLICIT.isdisjoint(terms) and (plain := _HARMLESS.sub("thing ", _fold(text))) != _fold(text):
        terms = extract_words(plain)
    sexual = (EXPLICIT | SUGGESTIVE) & terms
    minor = sexual and _find_minor_term(terms, text)
    return (min(sexual), minor) if minor else ()


def _find_minor_term(terms: frozenset[str], text: str) -> str:
    folded = _fold(text)
    if named := MINORS & terms:
        return min(named)
    if young := _YOUNG.search(folded):
        return young[0]
    return next((age[0] for age in _AGE.finditer(folded) if _is_below_adult_age(age)), "")


def _is_below_adult_age(age: re.Match[str]) -> bool:
    """Tell whether an age, in digits or as a word, is below eighteen."""
    digits = age["digits"] or age["aged"]
    return int(digits) < ADULT if digits else not age["tens"]
