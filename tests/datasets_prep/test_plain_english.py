"""False positives of cleaning and of the block on minors, on sentences without prompt syntax."""

from pathlib import Path

import pytest

from benchmarks.cleaning import find_blocked, find_changes, read_texts

CORPUS = Path(__file__).parents[1] / "data/english/wordnet.txt.gz"
REVIEWED = {  # each sentence is about abuse, a body or swimming
    "pornography + children": 2,
    "pedophile": 2,
    "sexually + children": 1,
    "breast + baby": 1,
    "breast + children": 1,
    "breasts + pubescent": 1,
}


@pytest.fixture(scope="module")
def sentences():
    actual = read_texts(CORPUS)
    assert len(actual) > 40_000
    return actual


def test_no_sentence_is_changed(sentences):
    assert find_changes(sentences) == []


def test_only_reviewed_sentences_are_blocked(sentences):
    actual = [terms for terms, _ in find_blocked(sentences)]
    assert {terms: actual.count(terms) for terms in actual} == REVIEWED
    assert len(actual) < 0.0005 * len(sentences)
