"""Words that filters look for. Whole words, in lower case, with digits that stand for letters read as letters."""

import re
from collections.abc import Iterable

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
    schoolgirl schoolgirls schoolboy schoolboys kindergartner preschooler tween tweens lolita youngster
    """.split()  # noqa: SIM905
)
BLOCKED = frozenset(["loli", "lolis", "lolicon", "shota", "shotas", "shotacon", "jailbait", "pedophile", "pedophilia"])

_READ_AS = str.maketrans("0134578@$", "oieastbas")
_WORD = re.compile(r"[^\W\d_]+")
_YOUNG = re.compile(
    r"\b(?:little|young|small|tiny|school|underage|under age)[\s-]+(?:girl|boy|daughter|son|sister|brother)s?\b"
)
_AGE = re.compile(r"\b(?:(\d{1,2})\s*-?\s*(?:years?|yrs?|yo|y/o)\b|aged?\s+(\d{1,2})\b)")
ADULT = 18  # years


def words(text: str) -> frozenset[str]:
    """The words of a text, those in disguise (`nud3`, `n u d e`) too."""
    folded = text.casefold()
    found = _WORD.findall(folded)
    letters = "".join(word for word in found if len(word) == 1)
    disguised = _WORD.findall(folded.translate(_READ_AS)) if any(c in folded for c in "0134578@$") else []
    return frozenset([*found, *disguised, letters])


def explicit(text: str) -> bool:
    return not EXPLICIT.isdisjoint(words(text))


def sexual_about_minors(text: str) -> bool:
    """A sexual term and one for a minor in one prompt, or a term that is both. It would rather block too much."""
    found = words(text)
    if not BLOCKED.isdisjoint(found):
        return True
    if EXPLICIT.isdisjoint(found) and SUGGESTIVE.isdisjoint(found):
        return False
    folded = text.casefold()
    return not MINORS.isdisjoint(found) or bool(_YOUNG.search(folded)) or any(age < ADULT for age in _ages(folded))


def _ages(folded: str) -> Iterable[int]:
    return (int(found[1] or found[2]) for found in _AGE.finditer(folded))
