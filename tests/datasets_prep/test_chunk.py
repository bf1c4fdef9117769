import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep import blocklist
from datasets_prep.chunk import SCHEMA, CleaningStats, clean_table
from datasets_prep.dedup import (
    BANDS,
    band_keys,
    candidate_pairs,
    exact_duplicates,
    exact_keys,
    jaccard,
    near_duplicates,
    normal_form,
    shingles,
)
from datasets_prep.filters import Filters
from datasets_prep.sources.rows import SCHEMA as RAW
from datasets_prep.sources.rows import table_from_columns


def words(texts):
    return [len(text.split()) for text in texts]


def raw(texts, **columns):
    return table_from_columns({"text": pa.array(texts, pa.string()), **columns}, len(texts))


def removed(texts, filters, **columns):
    table, stats = clean_table(raw(texts, **columns), 0, filters, words)
    assert stats.kept == table.num_rows
    return [i for i in range(len(texts)) if i not in table["row"].to_pylist()], stats


SCORES = pa.array([0.4, 0.6, None], pa.float32())
TEXTS = ["a red fox in the snow", "ein roter Fuchs im Schnee auf dem Berg", "nude woman on a beach, oil painting"]


@pytest.mark.parametrize(
    ("filters", "columns", "expected", "reason"),
    [
        (Filters(), {}, [], None),
        (Filters(language="en"), {}, [1], "language"),
        (Filters(language="de"), {}, [0, 2], "language"),
        (Filters(remove_nsfw=True), {}, [2], "NSFW"),
        (Filters(min_tokens=7), {}, [0], "too few tokens"),
        (Filters(max_tokens=7), {}, [1], "too many tokens"),
        (Filters(), {"punsafe": SCORES}, [1], "unsafe"),
        (Filters(max_punsafe=0), {"punsafe": SCORES}, [], None),
        (Filters(max_pwatermark=0.5), {"pwatermark": SCORES}, [1], "watermark"),
        (Filters(min_aesthetic=0.5), {"aesthetic": SCORES}, [0], "low aesthetic score"),
    ],
)
def test_a_filter_removes_its_rows_and_says_so(filters, columns, expected, reason):
    found, stats = removed(TEXTS, filters, **columns)
    assert found == expected
    assert dict(stats.removed) == ({reason: len(expected)} if reason else {})
    assert sorted(stats.samples.get(reason, [])) == [TEXTS[i] for i in expected]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("language_confidence", 2.0, "0 to 1"), ("min_aesthetic", -1.0, "0 or more"), ("min_tokens", -1, "0 or more")],
)
def test_a_filter_that_cannot_be(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}: got {value}; expected {allowed}"):
        Filters(**{name: value})


@pytest.mark.parametrize(
    ("text", "blocked"),
    [
        ("a naked child", True),
        ("sexy 15 year old", True),
        ("erotic, aged 16", True),
        ("erotic, aged 36", False),
        ("s3xy t33n", True),
        ("n u d e schoolgirl", True),
        ("little girl in lingerie", True),
        ("loli", True),
        ("a child with a kite", False),
        ("a nude woman of 40 years", False),
        ("a rooster and a baby chick", False),
        ("portrait of a 12 year old boy in armour", False),
    ],
)
def test_sexual_terms_about_minors_are_blocked_whatever_the_filters(text, blocked):
    assert blocklist.is_sexual_about_minors(text) == blocked
    found, stats = removed([text], Filters(max_punsafe=0, max_pwatermark=0))
    assert bool(found) == blocked
    assert stats.removed["sexual terms about minors"] == blocked
    assert not stats.samples.get("sexual terms about minors")


def test_what_is_blocked_about_minors_is_told_apart_from_the_samples():
    texts = ["a naked child", "a kid in lingerie", "the naked child", "a child with a kite"]
    _, stats = clean_table(raw(texts), 0, Filters(), words)
    record = stats.to_dict()
    assert record["blocked_terms"] == {"naked + child": 2, "lingerie + kid": 1}
    assert sorted(record["blocked"]) == [
        ["lingerie + kid", "a kid in lingerie"],
        ["naked + child", "a naked child"],
        ["naked + child", "the naked child"],
    ]
    assert not any(record["samples"].values())


def test_what_cleaning_changed_is_counted_and_shown():
    long = "word " * 100
    _, stats = clean_table(
        raw([f"{long}--ar 3:2", "a fox --ar 3:2 --no dog", "<i>a</i> dog", "a cat"]), 0, Filters(), words
    )
    assert stats.changed == {"--parameter": 2, "--no": 1, "HTML": 1}
    assert stats.changes["HTML"] == [["<i>a</i> dog", "a dog"]]
    assert stats.changes["--no"] == [["a fox --ar 3:2 --no dog", "a fox --ar 3:2  "]]
    shown = dict(stats.changes["--parameter"])
    assert {before[0] for before in shown} == {"a", "\u2026"}
    assert all("--ar 3:2" in before and "--ar" not in after for before, after in shown.items())
    assert all(len(text) < 210 for pair in shown.items() for text in pair)


def test_the_first_unreadable_row_is_kept():
    kinds = RAW.field("problem").type
    first = clean_table(raw(["a", None], problem=pa.array([None, "not JSON"], kinds)), 10, Filters(), words)[1]
    second = clean_table(raw([None], problem=pa.array(["no prompt"], kinds)), 7, Filters(), words)[1]
    first.merge(second)
    assert first.first_unreadable == [7, "no prompt"]


ENGLISH = """castle at sunset\nzen garden\na man with a hat\nart deco lobby\ncat\nPokemon card, Pikachu
graffiti on a brick wall, Banksy\nart nouveau poster, Alphonse Mucha style\na price war""".splitlines()
OTHERS = """ein roter Fuchs im Schnee auf dem Berg\nein Haus am See bei Nacht
une femme en robe rouge marche sous la pluie dans une rue de Paris
un zorro rojo en la nieve del bosque al atardecer\nuna volpe rossa nella neve al tramonto
\u0440\u044b\u0436\u0430\u044f \u043b\u0438\u0441\u0430 \u043d\u0430 \u0441\u043d\u0435\u0433\u0443
\u4e00\u53ea\u7ea2\u8272\u7684\u72d0\u72f8\u5728\u96ea\u5730\u91cc\u5954\u8dd1
\u96ea\u306e\u4e2d\u306e\u8d64\u3044\u72d0""".splitlines()


def test_short_english_is_no_other_language_and_another_language_is():
    found, _ = removed([*ENGLISH, *OTHERS], Filters(language="en"))
    assert found == list(range(len(ENGLISH), len(ENGLISH) + len(OTHERS)))


def test_tokens_are_counted_of_what_the_scores_left():
    counted = []
    clean_table(raw(TEXTS, punsafe=SCORES), 0, Filters(), lambda texts: counted.extend(texts) or words(texts))
    assert counted == [TEXTS[0], TEXTS[2]]


def test_refused_and_empty_rows_are_counted_by_their_place():
    table = raw(["--ar 3:2", None, "a  tree "], problem=pa.array([None, "not JSON", None], RAW.field("problem").type))
    kept, stats = clean_table(table, 100, Filters(), words)
    assert kept.schema == SCHEMA
    assert kept.select(["prompt", "tokens", "row"]).to_pylist() == [{"prompt": "a tree", "tokens": 2, "row": 102}]
    assert dict(stats.removed) == {"unreadable": 1, "empty": 1}
    assert stats.samples["unreadable"] == ["row 101: not JSON"]
    assert sum(stats.tokens) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["a b c", "nude", "--ar 3:2", "x", "d e f g"]), max_size=12), st.integers(1, 5))
def test_accounts_add_up_whatever_the_chunks(texts, size):
    filters = Filters(remove_nsfw=True)
    _, whole = clean_table(raw(texts), 0, filters, words)
    parts = CleaningStats()
    for first in reversed(range(0, len(texts), size)):
        parts.merge(clean_table(raw(texts[first : first + size]), first, filters, words)[1])
    assert parts.to_dict() == whole.to_dict()
    assert CleaningStats.from_dict(whole.to_dict()) == whole


LONG = "a portrait of an old sailor with a white beard and a pipe in heavy rain by a harbour at night, oil on canvas"
CORPUS = [
    LONG,
    "a red fox",
    LONG.replace("heavy", "light"),
    "A red fox!",
    "a blue fox",
    "harbour",
    LONG + ", highly detailed",
    "Harbour.",
]


def near(texts, threshold=0.8):
    normals = [normal_form(text) for text in texts]
    exact = exact_duplicates(exact_keys(normals))
    keys = band_keys(normals)
    found = near_duplicates(
        lambda number: keys[:, number],
        lambda rows: [normals[row] for row in rows],
        len(texts),
        threshold,
        exact,
    )
    return np.flatnonzero(exact).tolist(), np.flatnonzero(found).tolist()


def test_the_first_of_what_is_alike_stays():
    assert near(CORPUS) == ([3, 7], [2, 6])


def test_a_higher_threshold_keeps_more():
    between = jaccard(shingles(normal_form(CORPUS[0])), shingles(normal_form(CORPUS[2])))
    assert 0.8 < between < 0.9
    assert 2 not in near(CORPUS, 0.9)[1]


def test_chains_have_one_representative():
    """b is like a, and c like b: a stands for both, though c is not like a."""
    words = [f"w{i}" for i in range(60)]
    chain = [" ".join(words[start : start + 50]) for start in (0, 5, 10)]
    a, b, c = (shingles(text) for text in chain)
    assert jaccard(a, b) >= 0.8 > jaccard(a, c)
    assert near(chain)[1] == [1, 2]


def test_pairs_at_the_threshold_are_found():
    """Of pairs that overlap by 0.8 or more the bands miss fewer than 1 in 100."""
    rng = np.random.default_rng(0)
    texts, pairs = [], 0
    for _ in range(400):
        own = [f"t{n}" for n in rng.integers(0, 10**9, 40)]
        other = own.copy()
        other[int(rng.integers(1, 39))] = "changed"
        texts += [" ".join(own), " ".join(other)]
        pairs += jaccard(shingles(texts[-2]), shingles(texts[-1])) >= 0.8
    assert pairs == 400
    assert len(near(texts)[1]) >= 396


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=20))
def test_meetings_join_what_shares_a_key(keys):
    found = candidate_pairs(np.array(keys, dtype=np.uint64)).tolist()
    assert all(a < b and keys[a] == keys[b] for a, b in found)
    for row, key in enumerate(keys):
        first = keys.index(key)
        assert first == row or [first, row] in found
        earlier = [other for other in range(row) if keys[other] == key]
        assert not earlier or [earlier[-1], row] in found


def test_every_band_has_keys_of_its_own():
    keys = band_keys([normal_form(text) for text in CORPUS])
    assert keys.shape == (len(CORPUS), BANDS)
    assert len(np.unique(keys[0])) == BANDS
    assert (keys[1] == keys[3]).all()
