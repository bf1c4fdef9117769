"""Readers of all formats, with valid and damaged files."""

import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from datasets_prep.sources import SCHEMA, PromptFile, read_tables

LINES = [
    (json.dumps({"img_path": "000/a.jpg", "prompt": "a red fox", "Task2": {"Caption": "a fox"}}), None),
    ("no json", "not JSON"),
    (json.dumps({"prompt": None}), "no prompt"),
    (json.dumps({"prompt": 3}), "the prompt is not a string"),
    (json.dumps({"prompt": "\ud800"}), "not UTF-8"),
    (json.dumps([1]), "not an object"),
    (json.dumps({"prompt": "y" * 10_000_000}), "line of more than 1600000 bytes"),
    (json.dumps({"prompt": "last", "punsafe": 0.25}), None),
]
BODY = "\n".join(line for line, _ in LINES).encode() + b"\n\n\xff\n"
PROBLEMS = [problem for _, problem in LINES] + ["not UTF-8"]


def read_rows(path, size=4, column=""):
    tables = list(read_tables(PromptFile(fs.LocalFileSystem(), str(path), column), size))
    assert all(table.schema == SCHEMA and table.num_rows <= size for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def write_packed(path, body=BODY):
    if path.name.endswith("gz") and "tgz" not in path.name:
        path.write_bytes(gzip.compress(body))
    elif path.suffix == ".tgz":
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("data/train_anno.jsonl")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    else:
        path.write_bytes(body)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.tgz"])
def test_every_line_is_a_row_with_a_text_or_a_problem(tmp_path, name):
    actual = read_rows(write_packed(tmp_path / name))
    assert [row["problem"] for row in actual] == PROBLEMS
    assert [row["text"] for row in actual if not row["problem"]] == ["a red fox", "last"]
    assert actual[7]["punsafe"] == 0.25


def test_a_nested_column_is_read(tmp_path):
    actual = read_rows(write_packed(tmp_path / "a.jsonl"), column="Task2.Caption")
    assert actual[0]["text"] == "a fox"
    assert actual[-2]["problem"] == "no prompt"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.tgz"])
def test_a_truncated_archive_yields_its_readable_part(tmp_path, name):
    body = b"".join(json.dumps({"prompt": f"{i} {hash(str(i))}"}).encode() + b"\n" for i in range(4_000))
    path = write_packed(tmp_path / name, body)
    path.write_bytes(path.read_bytes()[:-2000])
    actual = read_rows(path, 1000)
    assert len(actual) > 2_000
    assert len(actual) == len(read_rows(path, 1))
    assert actual[-1]["problem"].startswith("file: ")
    assert not any(row["problem"] for row in actual[:-1])


def test_plain_text_is_read_line_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\n two \n\xff\n")
    assert [(row["text"], row["problem"]) for row in read_rows(tmp_path / "a.txt")] == [
        ("one", None), ("", None), ("two", None), (None, "not UTF-8"),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_invalid_csv_rows_are_reported(tmp_path, name, delimiter):
    lines = ["id,Caption,punsafe", '1,"a, b\nc",0.5', "2,too,many,fields", "3,\xff,x", "4,plain,"]
    text = "\n".join(lines).replace(",", delimiter) + "\n"
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    actual = read_rows(tmp_path / name)
    valid = [(row["text"], row["punsafe"]) for row in actual if not row["problem"]]
    assert valid == [(f"a{delimiter} b\nc", 0.5), ("plain", None)]
    assert sorted(row["problem"] for row in actual if row["problem"]) == ["4 fields; expected 3", "not UTF-8"]


LAION = {
    "URL": ["u"] * 6,
    "TEXT": ["a cat", "dog", None, "x" * 200_000, "e", "f"],
    "punsafe": [0.1, 0.9, 0.0, 0.0, 0.0, 0.0],
}


def write_parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, use_dictionary=False, compression="none", **options)
    return path


@pytest.mark.parametrize("score", ["AESTHETIC_SCORE", "aesthetic", "prediction"])
def test_laion_is_read_with_any_name_of_its_score(tmp_path, score):
    actual = read_rows(
        write_parquet(tmp_path / "a.parquet", {**LAION, score: [5.5, 6, 7, None, 1, 2]}, row_group_size=3), 2
    )
    assert [row["text"] for row in actual] == ["a cat", "dog", None, None, "e", "f"]
    assert [row["problem"] for row in actual[2:4]] == ["no prompt", "prompt of more than 100000 bytes"]
    assert [row["aesthetic"] for row in actual] == [5.5, 6, 7, None, 1, 2]


def test_a_bad_page_loses_only_its_row_group(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", LAION, row_group_size=2)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    body = bytearray(path.read_bytes())
    body[column.data_page_offset : column.data_page_offset + 12] = b"\xff" * 12
    path.write_bytes(body)
    actual = read_rows(path)
    assert [row["text"] for row in actual] == ["a cat", "dog", None, None, "e", "f"]
    assert all(row["problem"].startswith("row group 1: ") for row in actual[2:4])


def test_a_bad_page_keeps_the_rows_before_it(tmp_path):
    columns = {"prompt": [f"prompt {i}" for i in range(30_000)]}
    path = write_parquet(tmp_path / "a.parquet", columns, data_page_size=1000, write_batch_size=100)
    body = bytearray(path.read_bytes())
    middle = body.index(b"prompt 20000")
    body[middle - 3000 : middle] = b"\xff" * 3000
    path.write_bytes(body)
    actual = read_rows(path, 500)
    assert len(actual) == 30_000
    valid = [row["text"] for row in actual if not row["problem"]]
    assert 1000 < len(valid) < 20_000
    assert valid == columns["prompt"][: len(valid)]


@pytest.mark.parametrize(
    ("columns", "cut", "count", "problem"),
    [
        ({"x": [1, 2]}, None, 2, "file: no column prompt or text or caption or top_caption; it has x"),
        ({"prompt": ["a"]}, -20, 1, "file: Parquet magic bytes not found in footer"),
        ({"prompt": ["a"]}, 0, 1, "file: Parquet file size is 0 bytes"),
        ({"prompt": [["a"], ["b"]]}, None, 2, "row group 0: Unsupported cast"),
    ],
)
def test_an_unusable_file_is_reported_and_counted(tmp_path, columns, cut, count, problem):
    path = write_parquet(tmp_path / "a.parquet", columns)
    path.write_bytes(path.read_bytes()[:cut])
    actual = read_rows(path)
    assert len(actual) == count
    assert all(row["problem"].startswith(problem) for row in actual)


def test_invalid_utf_8_is_reported(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"prompt": pa.array([b"ok", b"\xff", None], pa.binary())})
    assert [row["problem"] for row in read_rows(path)] == [None, "not UTF-8", "no prompt"]


def test_an_empty_file_has_no_rows(tmp_path):
    assert read_rows(write_parquet(tmp_path / "a.parquet", {"prompt": pa.array([], pa.string())})) == []
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert read_rows(tmp_path / "a.jsonl") == []


def test_a_shard_of_a_hugging_face_dataset_is_read(tmp_path):
    table = pa.table({"prompt": ["a", "b", "c"], "negative_prompt": ["x", None, "z"]})
    with (
        pa.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    actual = read_rows(tmp_path / "data-00000-of-00001.arrow", 2)
    assert [(row["text"], row["negative"]) for row in actual] == [("a", "x"), ("b", None), ("c", "z")]


@pytest.mark.parametrize(
    ("name", "message"),
    [("captions.pkl", "got a pickle, which runs the code in it.*json.dumps"), ("a.docx", "expected .tar.gz, .tgz")],
)
def test_unsupported_files_are_rejected_with_a_reason(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.parquet"])
def test_a_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / name)
