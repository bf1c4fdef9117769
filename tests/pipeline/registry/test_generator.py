"""A registered student behind MLflow's scoring protocol, with optional columns missing, null or as JSON has them."""

import base64
import io
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import scoring_server
from PIL import Image

from pipeline.registry.register import register

FULL = {"prompt": "a cat", "negative_prompt": "dog", "seed": 3, "scale": 0.5}


@pytest.fixture
def model(candidate, uri):
    outcome = register(candidate(0), uri)
    mlflow.set_tracking_uri(uri)
    return mlflow.pyfunc.load_model(f"models:/{outcome.model}@champion")


def answers(model, **ask):
    answer = scoring_server.invocations(json.dumps(ask), "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200, answer.response
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in json.loads(answer.response)["predictions"]]
    assert all(image.format == "PNG" for image in images)
    return [np.asarray(image) for image in images]


def test_each_row_is_answered_whatever_it_leaves_out(model):
    (full,) = answers(model, dataframe_records=[FULL])
    (plain,) = answers(model, dataframe_records=[{"prompt": "a cat"}])
    assert full.shape == plain.shape
    nulls = {"prompt": "a cat", "negative_prompt": None, "seed": None, "scale": None}
    for rows, expected in (
        ([nulls], [plain]),
        ([nulls, FULL, {"prompt": "a cat"}], [plain, full, plain]),
        ([FULL, {"prompt": "a cat", "seed": 0}], [full, plain]),
        ([{**FULL, "scale": None}, FULL], [None, full]),
    ):
        found = answers(model, dataframe_records=rows)
        assert len(found) == len(rows)
        for image, wanted in zip(found, expected, strict=True):
            assert wanted is None or np.abs(image.astype(int) - wanted).max() <= 1
    (split,) = answers(model, dataframe_split={"columns": ["seed", "prompt"], "data": [[0, "a cat"]]})
    assert np.array_equal(split, plain)
    assert len(model.predict(pd.DataFrame([{"prompt": "a cat", "seed": 3}, {"prompt": "a dog"}]))) == 2


@pytest.mark.parametrize("values", [{"seed": 3}, {"seed": 3.0, "scale": 1}, {"seed": np.int32(3), "scale": None}])
def test_a_table_s_own_types_are_taken(model, values):
    assert len(model.predict(pd.DataFrame([{"prompt": "a cat", "negative_prompt": "dog", **values}]))) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [({"seed": value}, "seed: got .*; expected a whole number of 0 to") for value in (0.5, -1, 2.0**60, "three")]
    + [({"scale": value}, "scale: got .*; expected a number of 0 or more") for value in (-1, "much")],
)
def test_a_value_that_is_none_is_named(model, values, message):
    with pytest.raises(ValueError, match=message):
        model.predict(pd.DataFrame([FULL | values]))
