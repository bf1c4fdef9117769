"""A registered student behind MLflow's scoring protocol; optional columns may be missing, null or JSON types."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

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


def predict_images(model, **payload):
    answer = scoring_server.invocations(
        json.dumps(payload), "application/json", model, model.metadata.get_input_schema()
    )
    assert answer.status == 200, answer.response
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in json.loads(answer.response)["predictions"]]
    assert all(image.format == "PNG" for image in images)
    return [np.asarray(image) for image in images]


def test_optional_columns_may_be_missing_or_null(model):
    (full,) = predict_images(model, dataframe_records=[FULL])
    (plain,) = predict_images(model, dataframe_records=[{"prompt": "a cat"}])
    assert full.shape == plain.shape
    null_row = {"prompt": "a cat", "negative_prompt": None, "seed": None, "scale": None}
    for rows, expected in (
        ([null_row], [plain]),
        ([null_row, FULL, {"prompt": "a cat"}], [plain, full, plain]),
        ([FULL, {"prompt": "a cat", "seed": 0}], [full, plain]),
        ([{**FULL, "scale": None}, FULL], [None, full]),
    ):
        images = predict_images(model, dataframe_records=rows)
        assert len(images) == len(rows)
        for image, expected_image in zip(images, expected, strict=True):
            assert expected_image is None or np.abs(image.astype(int) - expected_image).max() <= 1
    (split,) = predict_images(model, dataframe_split={"columns": ["seed", "prompt"], "data": [[0, "a cat"]]})
    assert np.array_equal(split, plain)
    assert len(model.predict(pd.DataFrame([{"prompt": "a cat", "seed": 3}, {"prompt": "a dog"}]))) == 2


def test_concurrent_requests_do_not_disturb_each_other(model):
    rows = [FULL | {"seed": seed, "scale": scale} for seed in range(4) for scale in (0.0, 0.9)]
    alone = [model.predict(pd.DataFrame([row])) for row in rows]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda row: model.predict(pd.DataFrame([row])), rows))
    assert together == alone


@pytest.mark.parametrize("values", [{"seed": 3}, {"seed": 3.0, "scale": 1}, {"seed": np.int32(3), "scale": None}])
def test_numeric_types_of_a_table_are_accepted(model, values):
    assert len(model.predict(pd.DataFrame([{"prompt": "a cat", "negative_prompt": "dog", **values}]))) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [({"seed": value}, "seed: got .*; expected a whole number of 0 to") for value in (0.5, -1, 2.0**60, "three")]
    + [({"scale": value}, "scale: got .*; expected a number of 0 or more") for value in (-1, "much")],
)
def test_an_invalid_value_is_reported(model, values, message):
    with pytest.raises(ValueError, match=message):
        model.predict(pd.DataFrame([FULL | values]))
