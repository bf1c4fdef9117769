"""The normal form of deduplication: words of any script, and signs that distinguish words."""

import unicodedata
from functools import cache

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datasets_prep.dedup import normalise_text

SCRIPTS = """
Latin Greek Cyrillic Armenian Hebrew Arabic Syriac Thaana Devanagari Bengali Gurmukhi Gujarati Tamil Telugu Kannada
Malayalam Sinhala Thai Lao Tibetan Myanmar Georgian Hangul Ethiopic Khmer Mongolian Hiragana Katakana Han
"""


@cache
def list_letters(script):
    """Return the script's letters, marks and digits of the basic plane."""
    pattern = regex.compile(rf"[\p{{Script={script}}}&&[\p{{L}}\p{{M}}\p{{N}}]]", regex.V1)
    return [chr(code) for code in range(0x30, 0xFFFF) if pattern.fullmatch(chr(code))]


@pytest.mark.parametrize("script", SCRIPTS.split())
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_different_words_of_a_script_stay_apart(script, data):
    words = st.text(st.sampled_from(list_letters(script)), min_size=1, max_size=6)
    word = data.draw(words)
    other = data.draw(words | st.integers(0, len(word)).map(lambda end: word[:end] + word[end + 1 :]))
    one, two = (unicodedata.normalize("NFC", text).lower() for text in (word, other))
    assume(one != two and two)
    assert normalise_text(one) != normalise_text(two)
    assert normalise_text(f"a {one}, b") != normalise_text(f"a {two}, b")


@pytest.mark.parametrize(
    "texts",
    [
        ["C code", "C++ code", "C# code"],
        ["50 off", "50% off", "$50 off"],
        ["\U0001f469\u200d\U0001f680", "\U0001f468\u200d\U0001f680", "\U0001f469"],
        ["\U0001f44d", "\U0001f44d\U0001f3fd", "\U0001f44d\U0001f3ff"],
        ["\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7"],
        ["cat", "cat \U0001f431", "cat \U0001f431\U0001f431"],
        ["Ma\u00dfe", "Masse"],
        ["\u0915\u093f", "\u0915\u0940", "\u0915"],
        ["\u0e01\u0e32", "\u0e01\u0e48\u0e32", "\u0e01\u0e33"],
        ["\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e"],
        ["!!!", "???", "\u2014"],
    ],
)
def test_distinguishing_signs_are_kept(texts):
    assert len({normalise_text(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("A red fox!", "a  red, fox"),
        ("long_hair | blue-eyes ~", "long hair, blue eyes"),
        ("\u2764\ufe0f love", "\u2764 love"),
        ("cat\U0001f431", "cat \U0001f431"),
        ("\u65e5\u672c\u8a9e\u30fb\u732b", "\u65e5\u672c\u8a9e\u3001\u732b"),
    ],
)
def test_case_space_and_punctuation_are_ignored(one, two):
    assert normalise_text(one) == normalise_text(two)
