"""The tokenizer, compared with ids of open_clip 3.3.0 recorded by tests/data/scorers/make_tokens.py."""

import json
from pathlib import Path

import pytest

from pipeline.models.clip.tokenizer import tokenize

ROWS = json.loads((Path(__file__).parents[3] / "data" / "scorers" / "tokens.json").read_text())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row["text"])[:30])
def test_ids_equal_those_of_open_clip(row):
    assert tokenize([row["text"]]).tolist() == [row["ids"]]


def test_ids_do_not_depend_on_the_batch():
    assert tokenize([row["text"] for row in ROWS]).tolist() == [row["ids"] for row in ROWS]
