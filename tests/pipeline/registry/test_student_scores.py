import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.registry.student_scores import Scores
from pipeline.storage import Folder

ROW = {"system": "mine", "set": "a", "prompt": "p", "negative_prompt": "n", "seed": 1, "quality": 0.5}
QUALITY = {"value": 0.5, "low": 0.4, "high": 0.6, "images": 1}


def write_evaluation(tmp_path, rows, metrics):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    folder = Folder.from_uri(tmp_path)
    folder.write("scores.parquet", buffer.getvalue())
    folder.write("summary.json", json.dumps({"student": "mine", "metrics": metrics}).encode())
    return folder


def test_only_images_of_the_student_with_a_value_count(tmp_path):
    rows = [
        ROW,
        ROW | {"seed": 2, "quality": None},
        ROW | {"seed": 3, "quality": float("nan")},
        ROW | {"set": "b", "quality": 0.25},
        ROW | {"system": "another", "quality": 9.0},
    ]
    scores = Scores.read(write_evaluation(tmp_path, rows, {"quality": QUALITY}))
    assert scores.images == {"quality": {("a", "p", 1): 0.5, ("b", "p", 1): 0.25}}
    assert scores.format_metric("quality") == "0.500 (0.400-0.600)"
    assert scores.format_metric("gone") == ""


def test_rows_of_one_image_with_several_negatives_are_averaged(tmp_path):
    scores = Scores.read(
        write_evaluation(tmp_path, [ROW, ROW | {"negative_prompt": "m", "quality": 0.7}], {"quality": QUALITY})
    )
    assert scores.images["quality"] == {("a", "p", 1): pytest.approx(0.6)}


def test_other_scores_have_another_hash(tmp_path):
    first = Scores.read(write_evaluation(tmp_path / "1", [ROW], {"quality": QUALITY}))
    again = Scores.read(write_evaluation(tmp_path / "2", [ROW], {"quality": QUALITY}))
    other = Scores.read(write_evaluation(tmp_path / "3", [ROW | {"quality": 0.6}], {"quality": QUALITY}))
    assert first.sha256 == again.sha256 != other.sha256


def test_an_evaluation_without_a_judge_has_no_scores(tmp_path):
    folder = Folder.from_uri(tmp_path)
    folder.write("summary.json", b'{"student": "mine", "metrics": {}}')
    assert (Scores.read(folder).metrics, Scores.read(folder).images) == ({}, {})
