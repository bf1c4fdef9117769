"""The files that a source names."""

import json

import pyarrow as pa
import pytest

from pipeline.prompts.source_files import find_source_files
from pipeline.recipe import Source


def find_names(path):
    ((_, files),) = find_source_files((Source(path=str(path), name="x"),))
    return [file.uri.rpartition("/")[2] for file in files]


@pytest.fixture(params=["[2024] best prompts?", "caf\u00e9 \U0001f431 #1 100% {a}", "a+b (copy) ^$", "plain"])
def folder(request, tmp_path):
    root = tmp_path / request.param
    root.mkdir()
    for name in ("one.txt", "two.txt", "[a].txt", "b.csv"):
        (root / name).write_text("a red fox\n")
    return root


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
def test_only_an_asterisk_is_a_wildcard(folder, pattern, expected):
    assert find_names(f"{folder}/{pattern}".rstrip("/")) == expected
    assert find_names(str(folder)[:-1] + "*") == ["[a].txt", "b.csv", "one.txt", "two.txt"]


def write_shard(path):
    table = pa.table({"prompt": [path.name]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)


def test_a_hugging_face_dataset_is_read_by_its_shards(tmp_path):
    for split in ("train", "test"):
        split_folder = tmp_path / split
        split_folder.mkdir()
        for name in ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow", "cache-1f2e3d.arrow", "other.arrow"):
            write_shard(split_folder / name)
        files = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]
        (split_folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "x"}))
        (split_folder / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    expected = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert find_names(tmp_path / "train") == expected
    assert find_names(tmp_path) == expected * 2
    assert find_names(tmp_path / "train" / "*.arrow") == [*expected, "other.arrow"]
    assert find_names(tmp_path / "train" / "cache-1f2e3d.arrow") == ["cache-1f2e3d.arrow"]


@pytest.mark.parametrize("state", [None, "{", '{"step": 3}', "[]"])
def test_an_invalid_state_json_is_ignored(tmp_path, state):
    write_shard(tmp_path / "dataset-train.arrow")
    write_shard(tmp_path / "cache-1f2e3d.arrow")
    if state:
        (tmp_path / "state.json").write_text(state)
    assert find_names(tmp_path) == ["dataset-train.arrow"]


def test_the_output_of_img2dataset_is_read_once(tmp_path):
    for name in ("00000.tar", "00000.parquet", "00000_stats.json", "00001.tar", "extra.parquet", "more_stats.json"):
        (tmp_path / name).write_bytes(b"x")
    assert find_names(tmp_path) == ["00000.tar", "00001.tar", "extra.parquet", "more_stats.json"]
