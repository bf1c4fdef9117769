"""The generated reference of a recipe's fields."""

import json

import jsonschema
import pytest

from pipeline import ROOT
from pipeline.recipe import load, reference


@pytest.mark.parametrize(
    ("file", "generate"),
    [(reference.PAGE, reference.render_markdown), (reference.SCHEMA, reference.render_json_schema)],
)
def test_the_reference_is_current(file, generate):
    assert (ROOT / file).read_text(encoding="utf-8") == generate(), "run python -m pipeline.recipe.reference"


def test_every_field_is_described():
    rows = [line for line in reference.render_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert not [row for row in rows if row.split(" | ")[-1].strip(" |") == ""]


def test_the_schema_accepts_recipes_and_rejects_typos():
    schema = json.loads(reference.render_json_schema())
    values = load("sd21").to_dict()
    jsonschema.validate({**values, "base": "paper"}, schema)
    with pytest.raises(jsonschema.ValidationError, match="stepz"):
        jsonschema.validate({**values, "train": {"stepz": 1}}, schema)
