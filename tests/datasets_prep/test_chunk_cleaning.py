import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep import blocklist
from datasets_prep.chunk_cleaning import SCHEMA, CleaningStats, clean_table
from datasets_prep.dedup import (
    BANDS,
    compute_band_keys,
    compute_exact_keys,
    extract_shingles,
    find_candidate_pairs,
    find_exact_duplicates,
    find_near_duplicates,
    jaccard,
    normalise_text,
)
from datasets_prep.filters import Filters
from datasets_prep.sources.raw_prompt_schema import SCHEMA as RAW
from datasets_prep.sources.raw_prompt_schema import table_from_columns


def count_words(texts):
    return [len(text.split()) for text in texts]


def build_raw_table(texts, **columns):
    return table_from_columns({"text": pa.array(texts, pa.string()), **columns}, len(texts))


def clean_texts(texts, filters, **columns):
    table, stats = clean_table(build_raw_table(texts, **columns), 0, filters, count_words)
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
def test_a_filter_removes_rows_and_reports_the_reason(filters, columns, expected, reason):
    actual, stats = clean_texts(TEXTS, filters, **columns)
    assert actual == expected
    assert dict(stats.removed) == ({reason: len(expected)} if reason else {})
    assert sorted(stats.samples.get(reason, [])) == [TEXTS[i] for i in expected]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("language_confidence", 2.0, "0 to 1"), ("min_aesthetic", -1.0, "0 or more"), ("min_tokens", -1, "0 or more")],
)
def test_invalid_filter_options_are_rejected(name, value, allowed):
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
    actual, stats = clean_texts([text], Filters(max_punsafe=0, max_pwatermark=0))
    assert bool(actual) == blocked
    assert stats.removed["sexual terms about minors"] == blocked
    assert not stats.samples.get("sexual terms about minors")


def test_blocked_texts_are_reported_separately_from_samples():
    texts = ["a naked child", "a kid in lingerie", "the naked child", "a child with a kite"]
    _, stats = clean_table(build_raw_table(texts), 0, Filters(), count_words)
    record = stats.to_dict()
    assert record["blocked_terms"] == {"naked + child": 2, "lingerie + kid": 1}
    assert sorted(record["blocked"]) == [
        ["lingerie + kid", "a kid in lingerie"],
        ["naked + child", "a naked child"],
        ["naked + child", "the naked child"],
    ]
    assert not any(record["samples"].values())


def test_changes_of_cleaning_are_counted_and_sampled():
    long = "word " * 100
    _, stats = clean_table(
        build_raw_table([f"{long}--ar 3:2", "a fox --ar 3:2 --no dog", "<i>a</i> dog", "a cat"]),
        0,
        Filters(),
        count_words,
    )
    assert stats.changed == {"--parameter": 2, "--no": 1, "HTML": 1}
    assert stats.changes["HTML"] == [["<i>a</i> dog", "a dog"]]
    assert stats.changes["--no"] == [["a fox --ar 3:2 --no dog", "a fox --ar 3:2  "]]
    samples = dict(stats.changes["--parameter"])
    assert {before[0] for before in samples} == {"a", "\u2026"}
    assert all("--ar 3:2" in before and "--ar" not in after for before, after in samples.items())
    assert all(len(text) < 210 for pair in samples.items() for text in pair)


def test_the_first_unreadable_row_is_recorded():
    kinds = RAW.field("problem").type
    first = clean_table(
        build_raw_table(["a", None], problem=pa.array([None, "not JSON"], kinds)), 10, Filters(), count_words
    )[1]
    second = clean_table(build_raw_table([None], problem=pa.array(["no prompt"], kinds)), 7, Filters(), count_words)[1]
    first.merge(second)
    assert first.first_unreadable == [7, "no prompt"]


ENGLISH = """castle at sunset\nzen garden\na man with a hat\nart deco lobby\ncat\nPokemon card, Pikachu
graffiti on a brick wall, Banksy\nart nouveau poster, Alphonse Mucha style\na price war""".splitlines()
OTHER_LANGUAGES = """ein roter Fuchs im Schnee auf dem Berg\nein Haus am See bei Nacht
une femme en robe rouge marche sous la pluie dans une rue de Paris
un zorro rojo en la nieve del bosque al atardecer\nuna volpe rossa nella neve al tramonto
\u0440\u044b\u0436\u0430\u044f \u043b\u0438\u0441\u0430 \u043d\u0430 \u0441\u043d\u0435\u0433\u0443
\u4e00\u53ea\u7ea2\u8272\u7684\u72d0\u72f8\u5728\u96ea\u5730\u91cc\u5954\u8dd1
\u96ea\u306e\u4e2d\u306e\u8d64\u3044\u72d0""".splitlines()


def test_short_english_passes_the_language_filter_and_other_languages_do_not():
    actual, _ = clean_texts([*ENGLISH, *OTHER_LANGUAGES], Filters(language="en"))
    assert actual == list(range(len(ENGLISH), len(ENGLISH) + len(OTHER_LANGUAGES)))


def test_tokens_are_counted_only_for_rows_that_pass_the_score_filters():
    counted = []
    clean_table(
        build_raw_table(TEXTS, punsafe=SCORES), 0, Filters(), lambda texts: counted.extend(texts) or count_words(texts)
    )
    assert counted == [TEXTS[0], TEXTS[2]]


def test_unreadable_and_empty_rows_are_counted_by_row_number():
    table = build_raw_table(
        ["--ar 3:2", None, "a  tree "], problem=pa.array([None, "not JSON", None], RAW.field("problem").type)
    )
    cleaned, stats = clean_table(table, 100, Filters(), count_words)
    assert cleaned.schema == SCHEMA
    assert cleaned.select(["prompt", "tokens", "row"]).to_pylist() == [{"prompt": "a tree", "tokens": 2, "row": 102}]
    assert dict(stats.removed) == {"unreadable": 1, "empty": 1}
    assert stats.samples["unreadable"] == ["row 101: not JSON"]
    assert sum(stats.tokens) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["a b c", "nude", "--ar 3:2", "x", "d e f g"]), max_size=12), st.integers(1, 5))
def test_stats_do_not_depend_on_the_chunk_size(texts, size):
    filters = Filters(remove_nsfw=True)
    _, complete = clean_table(build_raw_table(texts), 0, filters, count_words)
    parts = CleaningStats()
    for first in reversed(range(0, len(texts), size)):
        parts.merge(clean_table(build_raw_table(texts[first : first + size]), first, filters, count_words)[1])
    assert parts.to_dict() == complete.to_dict()
    assert CleaningStats.from_dict(complete.to_dict()) == complete


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


def find_duplicates(texts, threshold=0.8):
    normals = [normalise_text(text) for text in texts]
    exact = find_exact_duplicates(compute_exact_keys(normals))
    keys = compute_band_keys(normals)
    actual = find_near_duplicates(
        lambda number: keys[:, number],
        lambda rows: [normals[row] for row in rows],
        len(texts),
        threshold,
        exact,
    )
    return np.flatnonzero(exact).tolist(), np.flatnonzero(actual).tolist()


def test_the_first_duplicate_is_kept():
    assert find_duplicates(CORPUS) == ([3, 7], [2, 6])


def test_a_higher_threshold_keeps_more():
    similarity = jaccard(extract_shingles(normalise_text(CORPUS[0])), extract_shingles(normalise_text(CORPUS[2])))
    assert 0.8 < similarity < 0.9
    assert 2 not in find_duplicates(CORPUS, 0.9)[1]


def test_chains_have_one_representative():
    """If b is similar to a and c to b, a represents both, although c is not similar to a."""
    vocabulary = [f"w{i}" for i in range(60)]
    chain = [" ".join(vocabulary[start : start + 50]) for start in (0, 5, 10)]
    a, b, c = (extract_shingles(text) for text in chain)
    assert jaccard(a, b) >= 0.8 > jaccard(a, c)
    assert find_duplicates(chain)[1] == [1, 2]


def test_pairs_at_the_threshold_are_found():
    """The bands miss less than 1 % of the pairs with a similarity of 0.8 or more."""
    rng = np.random.default_rng(0)
    texts, pairs = [], 0
    for _ in range(400):
        tokens = [f"t{n}" for n in rng.integers(0, 10**9, 40)]
        other = tokens.copy()
        other[int(rng.integers(1, 39))] = "changed"
        texts += [" ".join(tokens), " ".join(other)]
        pairs += jaccard(extract_shingles(texts[-2]), extract_shingles(texts[-1])) >= 0.8
    assert pairs == 400
    assert len(find_duplicates(texts)[1]) >= 396


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=20))
def test_candidate_pairs_share_a_key(keys):
    actual = find_candidate_pairs(np.array(keys, dtype=np.uint64)).tolist()
    assert all(a < b and keys[a] == keys[b] for a, b in actual)
    for row, key in enumerate(keys):
        first = keys.index(key)
        assert first == row or [first, row] in actual
        earlier = [other for other in range(row) if keys[other] == key]
        assert not earlier or [earlier[-1], row] in actual


def test_bands_have_different_keys():
    keys = compute_band_keys([normalise_text(text) for text in CORPUS])
    assert keys.shape == (len(CORPUS), BANDS)
    assert len(np.unique(keys[0])) == BANDS
    assert (keys[1] == keys[3]).all()
