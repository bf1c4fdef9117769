"""Which files a source names."""

import json

import pyarrow as pa
import pytest

from pipeline.prompts.source_files import find_source_files
from pipeline.recipe import Source


def names(path):
    ((_, found),) = find_source_files((Source(path=str(path), name="x"),))
    return [file.uri.rpartition("/")[2] for file in found]


@pytest.fixture(params=["[2024] best prompts?", "caf\u00e9 \U0001f431 #1 100% {a}", "a+b (copy) ^$", "plain"])
def folder(request, tmp_path):
    own = tmp_path / request.param
    own.mkdir()
    for name in ("one.txt", "two.txt", "[a].txt", "b.csv"):
        (own / name).write_text("a red fox\n")
    return own


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["[a].txt", "b.csv", "one.txt", "two.txt"]),
        ("*.txt", ["[a].txt", "one.txt", "two.txt"]),
        ("*o*.txt", ["one.txt", "two.txt"]),
        ("[a].txt", ["[a].txt"]),
        ("[a]*", ["[a].txt"]),
    ],
)
def test_only_an_asterisk_is_a_pattern(folder, pattern, expected):
    assert names(f"{folder}/{pattern}".rstrip("/")) == expected
    assert names(str(folder)[:-1] + "*") == ["[a].txt", "b.csv", "one.txt", "two.txt"]


def shard(path):
    table = pa.table({"prompt": [path.name]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)


def test_a_dataset_of_hugging_face_is_its_shards(tmp_path):
    for split in ("train", "test"):
        own = tmp_path / split
        own.mkdir()
        for name in ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "cache-1f2e3d.arrow", "other.arrow"):
            shard(own / name)
        files = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]
        (own / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "x"}))
        (own / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    expected = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert names(tmp_path / "train") == expected
    assert names(tmp_path) == expected * 2
    assert names(tmp_path / "train" / "*.arrow") == [*expected, "other.arrow"]
    assert names(tmp_path / "train" / "cache-1f2e3d.arrow") == ["cache-1f2e3d.arrow"]


@pytest.mark.parametrize("state", [None, "{", '{"step": 3}', "[]"])
def test_another_state_json_names_no_shards(tmp_path, state):
    shard(tmp_path / "dataset-train.arrow")
    shard(tmp_path / "cache-1f2e3d.arrow")
    if state:
        (tmp_path / "state.json").write_text(state)
    assert names(tmp_path) == ["dataset-train.arrow"]


def test_what_img2dataset_writes_is_read_once(tmp_path):
    for name in ("00000.tar", "00000.parquet", "00000_stats.json", "00001.tar", "extra.parquet", "more_stats.json"):
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["00000.tar", "00001.tar", "extra.parquet", "more_stats.json"]
