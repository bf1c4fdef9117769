import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep.cleaning import RULES, clean, clean_with_changes

CASES = [
    ("https://s.mj.run/abc a red fox:: 2 in the snow::0.5 --ar 3:2 --v 5 --q 2", "a red fox in the snow"),
    ("--ar 3:2 a cat on --v 5 the roof --tile", "a cat on the roof"),
    ("a {red, blue} car --no people, text --ar 1:1", "a red car"),
    ("{a, {b, c}} d", "a d"),
    ("a house --v 5.2 --s 750 --style raw", "a house"),
    ("low-poly art \u2014 cinematic \u2014ar 16:9", "low-poly art \u2014 cinematic"),
    ("**a castle** - @bob (fast)", "a castle"),
    ("well known --unknown thing", "well known --unknown thing"),
    ("a man - portrait", "a man - portrait"),
    ("a cat &amp; dog <b>bold</b><script>alert(1)</script>", "a cat & dog bold"),
    ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3"),
    ("<https://x.y/z.png> tree, , ,", "tree"),
    ("sch\u00c3\u00b6n caf\u00c3\u00a9 \u200b photo", "sch\u00f6n caf\u00e9 photo"),
    ("e\u0301", "\u00e9"),
    ("two\n lines\t here", "two lines here"),
    ("--ar 3:2", ""),
    ("/imagine prompt: a red fox --ar 3:2", "a red fox"),
    ("/imagine a red fox", "a red fox"),
    ("(masterpiece:1.2), ((best quality:1.1), detailed:1.3), a cat <lora:style_v2:0.8>",
     "masterpiece, best quality, detailed, a cat"),
    ("naruto (series \\(anime\\):1.2)", "naruto series \\(anime\\)"),
    ("a fox \u2014ar 16:9 \u2013v 5 \u2014tile", "a fox"),
    ("a fox --AR 16:9 --S 1,000 --HD", "a fox"),
    ("a fox --ar16:9 --v5.2 --q .5", "a fox"),
    ("a cat --v 5, oil on canvas", "a cat, oil on canvas"),
    ("a cat --sref random --p a1b2c --profile xyz", "a cat"),
    ("a cat --no", "a cat"),
    ('"a cat --ar 3:2"', '"a cat"'),
    ('"Hello" on a sign --v 5', '"Hello" on a sign'),
    ("{a\\, b, c} d", "a, b d"),
    ("cat:: dog::-.5", "cat dog"),
    ("**a castle** - Upscaled (Subtle) by @bob (fast)", "a castle"),
    ("a castle --v 4 - Image #2 <@123>", "a castle"),
    ("one<br>two <p>three</p>", "one two three"),
    ("red\rblue\x0bgreen\x0cgrey\x1dpink\u2028white\u2029black\x85brown",
     "red blue green grey pink white black brown"),
    ("\u00c3\x85ngstr\u00c3\u00b6m", "\u00c5ngstr\u00f6m"),
    ("photo --ar 3:2--v 5", "photo"),
    ("photo --ar 3:2--v 5--style raw--tile", "photo"),
    ("photo \u2014ar 16:9\u2014v 5", "photo"),
    ("cat ::1.5dog", "cat dog"),
    ("cat::1.5dog::.5", "cat dog"),
    ("cat ::1.5 dog", "cat dog"),
    ("portrait--ar 3:2", "portrait"),
    ("portrait\u2014ar 3:2, oil", "portrait, oil"),
    ("portrait,--ar 2:3", "portrait"),
    ("portrait--v 5 --q 2", "portrait"),
    ("a fox --ar=16:9 --v=5 --style=raw", "a fox"),
    ("photo (--ar 3:2)", "photo"),
    ("photo [--ar 3:2 --v 5], oil", "photo, oil"),
    ("a fox --w 512 --h 768", "a fox"),
    ("a street --no people, text--ar 1:1", "a street"),
    ("a street --no people", "a street"),
    ("a street--ar 16:9--no people", "a street"),
    ("a street --no people walking in the far background --ar 1:1", "a street"),
    ("a fox \u2014no dogs \u2014ar 16:9", "a fox"),
    ("a fox \u2014no dogs, cats", "a fox"),
    ('"a fox --fast --tile"', '"a fox"'),
    ("(a photo of 16:9 size:1.2) by day", "a photo of 16:9 size by day"),
    ("red&nbsp;fox&#8203; &#13;den", "red fox den"),
]  # fmt: skip

PLAIN = """
a cozy wood-paneled library with a fireplace, oil painting
a wide angle shot - panoramic view of the Alps
Peter-Pan flying over London - Pan
a - Variations on a theme by Bach
2015 Ford Mustang - Image #2
well known --unknown thing
he stopped --no one knew why
she said \u2014no and left the room in tears
she said --no and left the room in tears
she said \u2014no thanks
he lost his keys --no surprise
in 1990--no people
two modes --fast and slow
he ran --raw, wild, free
odds (Federer:1.5, Nadal:2.8)
hot--v 5 seconds, wide--ar of light, the room\u2014s 5
call ns::2d code and a::b
all is quiet--no wind--stop 5 seconds, hot\u2014fast 3
the house \u2014style matters more than size
an evening \u2013 fast cars
std::vector code, C++ :: C#
(Genesis 1:3), at (10:30), a model (scale 1:2.5), ratio (16:9)
a {curly} brace, {a|b}
2**8 and 3**2, *star*
the token <sks> dog in <style>, oil
5 < 6 and 7 > 3, I <3 you, a <- b
R&B poster, rock &copy band, AT&T
"Hello" on a sign
'tis the season:
a word_with_underscores, `code` and a trailing -
- a list
imagine prompt: a cat, and /imagine in the middle
www.example.org on a shirt
\u732b\uff01\u300c\uff21\uff22\u300d\u3001\ufb01ne
\U0001f469\u200d\U0001f680 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645
""".strip().splitlines()


@pytest.mark.parametrize(("raw", "expected"), CASES)
def test_prompt_syntax_is_removed(raw, expected):
    assert clean(raw) == expected


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_is_kept_word_for_word(text):
    assert clean_with_changes(text) == (text, [])


WORDS = """
ar aspect no style v5 tile fast Pan Upscaled Variations Image prompt wood-paneled T-shirt Spider-Man 1950's C++ C# R&B
50% #1 $5 16:9 3:2 (16:9) (10:30) 5 < > <3 {one} a_b x--y std::vector [::2] fox:den (aside) `code` *star* e.g.
rock'n'roll 2**8 @home hot--fast
"""
# Most Latin letters beyond ASCII are left out, because text that looks like mojibake is repaired.
LETTERS = st.text(
    st.characters(categories=["Ll", "Lu", "Lo"], max_codepoint=0x2FFF, exclude_characters="\xaa\xba").filter(
        lambda c: not 0x80 <= ord(c) < 0x250 or c in "\xe9\xfc\xf1\xdf\u0142"
    ),
    min_size=1,
    max_size=8,
)
SEPARATORS = st.sampled_from(
    [" ", " ", " ", ", ", "; ", ": ", " - ", " \u2014 ", "\u2014", "/", ". ", "! ", "\n", "\t ", " & "]
)


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.tuples(st.sampled_from(WORDS.split()) | LETTERS, SEPARATORS), min_size=1, max_size=12), st.booleans()
)
def test_text_without_syntax_is_unchanged(parts, quoted):
    text = unicodedata.normalize("NFC", "".join(word + separator for word, separator in parts))
    text = f'"{text.strip()}"' if quoted else text
    assert clean(text) == " ".join(text.split())


def test_each_rule_reports_its_change():
    text, changes = clean_with_changes("<b>a  fox</b> --ar 3:2 --no dogs")
    assert text == "a fox"
    assert [rule for rule, _, _ in changes] == ["HTML", "--no", "--parameter"]
    assert changes[1][1:] == ("a  fox --ar 3:2 --no dogs", "a  fox --ar 3:2  ")
    assert [rule for rule, _, _ in clean_with_changes("a\u200b\n fox")[1]] == ["broken or invisible characters"]
    assert [rule for rule, _, _ in clean_with_changes("a\n fox")[1]] == ["line ends and repeated space"]
    assert {rule for rule, _, _ in clean_with_changes(CASES[0][0])[1]} < set(RULES)


@settings(deadline=None, max_examples=300)
@given(
    st.text(
        alphabet=st.sampled_from("ab 1:.,;-\u2014{}<>&*|'\"\n\u200b\u00e9") | st.characters(codec="utf-8"), max_size=60
    )
)
def test_any_text_is_cleaned_to_one_printable_line(text):
    cleaned = clean(text)
    assert cleaned == cleaned.strip()
    assert "\n" not in cleaned
    assert "\u200b" not in cleaned
