import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep.cleaning import clean, negatives_of

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
]


@pytest.mark.parametrize(("raw", "expected"), CASES)
def test_what_is_no_prompt_is_removed(raw, expected):
    assert clean(raw) == expected


@settings(deadline=None, max_examples=300)
@given(
    st.text(
        alphabet=st.sampled_from("ab 1:.,;-\u2014{}<>&*|'\"\n\u200b\u00e9") | st.characters(codec="utf-8"), max_size=60
    )
)
def test_any_text_is_cleaned_to_something_printable(text):
    cleaned = clean(text)
    assert cleaned == cleaned.strip()
    assert "\n" not in cleaned
    assert "\u200b" not in cleaned


def test_a_midjourney_prompt_names_its_negatives():
    assert negatives_of("a street --no people, text --ar 1:1") == ["people", "text"]
    assert negatives_of("a street --ar 1:1") == []
