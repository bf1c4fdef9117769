"""Against open_clip 3.3.0's own tokenizer: tests/data/scorers/make_tokens.py says how its ids were had."""

import json
from pathlib import Path

import pytest

from pipeline.models.clip.tokenizer import tokenize

ROWS = json.loads((Path(__file__).parents[3] / "data" / "scorers" / "tokens.json").read_text())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row["text"])[:30])
def test_ids_are_open_clip_s(row):
    assert tokenize([row["text"]]).tolist() == [row["ids"]]


def test_a_text_s_ids_are_the_same_among_others():
    assert tokenize([row["text"] for row in ROWS]).tolist() == [row["ids"] for row in ROWS]
