"""Real sentences, none of which has any prompt tool's syntax: what cleaning and the block on minors do to them."""

from pathlib import Path

import pytest

from benchmarks.cleaning import blocked, changes, texts_of

CORPUS = Path(__file__).parents[1] / "data/english/wordnet.txt.gz"
LOOKED_AT = {  # each is about abuse, a body or swimming, by the words themselves
    "pornography + children": 2,
    "pedophile": 2,
    "sexually + children": 1,
    "breast + baby": 1,
    "breast + children": 1,
    "breasts + pubescent": 1,
}


@pytest.fixture(scope="module")
def sentences():
    found = texts_of(CORPUS)
    assert len(found) > 40_000
    return found


def test_no_sentence_is_changed(sentences):
    assert changes(sentences) == []


def test_blocked_is_what_was_looked_at(sentences):
    found = [terms for terms, _ in blocked(sentences)]
    assert {terms: found.count(terms) for terms in found} == LOOKED_AT
    assert len(found) < 0.0005 * len(sentences)
