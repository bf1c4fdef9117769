"""Files of prompts: formats, defaults, and the one line about a value that is not accepted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.generation.image_request import MAX_SEED, ImageRequest
from pipeline.generation.prompt_table import RowDefaults, read_prompt_table

DEFAULTS = RowDefaults(negative_prompt="blurry", seed=7)
ROWS = [
    {"prompt": "a cat"},
    {"prompt": "a dog, on a mat", "negative_prompt": "red", "seed": 3, "scale": 0.25},
    {"prompt": 'a "bird"', "seed": MAX_SEED, "method": "nag"},
]
REQUESTS = [
    ImageRequest("a cat", 7, "blurry", None),
    ImageRequest("a dog, on a mat", 3, "red", 0.25),
    ImageRequest('a "bird"', MAX_SEED, "blurry", 4.0, "nag"),
]
CSV = f"""\ufeffprompt,negative_prompt,seed,scale,method
a cat,,,,
"a dog, on a mat",red,3,0.25,nasa
"a ""bird""\",,{MAX_SEED},,nag
"""


def read(path, content, defaults=DEFAULTS):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompt_table([str(path)], defaults)


def test_csv_json_lines_and_parquet_of_the_same_rows_give_the_same_requests(tmp_path):
    lines = "\n\n".join(json.dumps(row) for row in ROWS)
    types = {"prompt": pa.string(), "negative_prompt": pa.string(), "seed": pa.int64(), "scale": pa.float32()}
    schema = pa.schema({**types, "method": pa.string()})
    pq.write_table(pa.Table.from_pylist(ROWS, schema), tmp_path / "a.parquet")
    tables = [
        read(tmp_path / "a.csv", CSV),
        read(tmp_path / "A.JSONL", lines),
        read_prompt_table([str(tmp_path / "a.parquet")], DEFAULTS),
    ]
    for table in tables:
        assert [row.request for row in table.rows] == REQUESTS
    assert [[row.row for row in table.rows] for table in tables] == [[1, 2, 3], [1, 3, 5], [1, 2, 3]]


def test_each_line_of_text_is_a_prompt_and_keeps_its_number(tmp_path):
    table = read(tmp_path / "a.txt", "a cat\r\n\n  a dog, on a mat \n1\n")
    assert [(row.row, row.request.prompt) for row in table.rows] == [(1, "a cat"), (3, "a dog, on a mat"), (4, "1")]
    assert {row.request.negative_prompt for row in table.rows} == {"blurry"}


def test_defaults_fill_what_a_row_does_not_have(tmp_path):
    defaults = RowDefaults(negative_prompt="red", seed=5, scale=0.5, method="vsf")
    table = read(tmp_path / "a.jsonl", '{"prompt": "x"}\n{"prompt": "x", "negative_prompt": "", "scale": 0}', defaults)
    assert [row.request for row in table.rows] == [
        ImageRequest("x", 5, "red", 0.5, "vsf"),
        ImageRequest("x", 5, "", 0.0, "vsf"),
    ]


def test_pandas_missing_numbers_are_missing(tmp_path):
    table = pa.table({"prompt": ["x", "y"], "seed": [3.0, float("nan")], "__index_level_0__": [0, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row.request.seed for row in read_prompt_table([str(tmp_path / "a.parquet")], DEFAULTS).rows] == [3, 7]


def test_several_files_are_read_in_order_with_their_hashes(tmp_path):
    for name, text in (("b.txt", "one\n"), ("a.txt", "two\nthree\n")):
        (tmp_path / name).write_text(text)
    table = read_prompt_table([f"{tmp_path}/b.txt", f"{tmp_path}/a.txt"], DEFAULTS)
    assert [(row.file[-5:], row.row, row.request.prompt) for row in table.rows] == [
        ("b.txt", 1, "one"),
        ("a.txt", 1, "two"),
        ("a.txt", 2, "three"),
    ]
    assert [file.rows for file in table.files.values()] == [1, 2]
    assert len({file.sha256 for file in table.files.values()}) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt: got no rows; expected one prompt or more."),
        ("a.txt", "\n \n", "a.txt: got no rows; expected one prompt or more."),
        ("a.csv", "prompt,seed\n", "a.csv: got no rows; expected one prompt or more."),
        ("a.csv", "", "a.csv: got no rows; expected one prompt or more."),
        ("a.txt", b"a\n\xff\n", "a.txt: got byte 2, which is not UTF-8; expected UTF-8 text."),
        ("a.txt", "x" * 4001, f"a.txt: row 1: prompt: got '{'x' * 60}...'; expected at most 4000 characters."),
        ("a.csv", "prompt,sede\nx,1\n", "a.csv: column: got 'sede'; expected one of prompt, negative_prompt, seed"),
        ("a.csv", "prompt,seed,seed\nx,1,2\n", "a.csv: column: got 'seed'; expected each column once."),
        ("a.csv", "seed\n1\n", "a.csv: columns: got 'seed'; expected prompt among them."),
        ("a.csv", "prompt,seed\nx,1\ny,2,3\n", "a.csv: row 2: got ['3']; expected no more cells than the header has."),
        ("a.csv", "prompt,seed\nx,1\ny,one\n", "a.csv: row 2: seed: got 'one'; expected a whole number."),
        ("a.csv", "prompt,seed\nx,1\ny,1_0\n", "a.csv: row 2: seed: got '1_0'; expected a whole number."),
        ("a.csv", "prompt,seed\nx,1.5\n", "a.csv: row 1: seed: got 1.5; expected a whole number."),
        ("a.csv", "prompt,seed\nx,-1\n", "a.csv: row 1: seed: got -1; expected a number at least 0."),
        ("a.csv", "prompt,seed\n,3\n", "a.csv: row 1: prompt: got None; expected a value."),
        ("a.csv", "prompt,scale\nx,inf\n", "a.csv: row 1: scale: got inf; expected a finite number."),
        ("a.csv", "prompt,scale\nx,101\n", "a.csv: row 1: scale: got 101; expected a number at most 100.0."),
        ("a.csv", "prompt\nx\n\"y\n", "a.csv: row 2: is not valid CSV: unexpected end of data."),
        ("a.jsonl", '{"prompt": "x"}\n"y"\n', "a.jsonl: row 2: got '\"y\"'; expected a JSON object."),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"\n', "a.jsonl: row 2: got '{\"prompt\"'; expected a JSON object."),
        ("a.jsonl", "[" * 10**5, f"a.jsonl: row 1: got '{'[' * 60}'; expected a JSON object."),
        ("a.jsonl", '{"prompt": ""}', "a.jsonl: row 1: prompt: got ''; expected a string that is not empty."),
        ("a.jsonl", '{"prompt": 3}', "a.jsonl: row 1: prompt: got 3; expected a string."),
        ("a.jsonl", '{"prompt": "x", "seed": true}', "a.jsonl: row 1: seed: got True; expected a whole number."),
        ("a.jsonl", '{"prompt": "x", "seed": 9007199254740992}', "expected a number at most 9007199254740991."),
        ("a.jsonl", '{"prompt": "x", "method": "sag"}', "method: got 'sag'; expected 'nasa', 'nag', 'vsf' or 'cfg'."),
        ("a.jsonl", '{"prompt": "x", "guidance": 2}', "row 1: guidance: got 2; expected one of the fields prompt, "),
        ("a.parquet", "PAR1", "a.parquet: is not a readable Parquet file: "),
        ("a.json", "[]", "expected a file that ends in .txt, .csv, .jsonl, .parquet."),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line_with_file_row_and_field(tmp_path, name, content, message):
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, content)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_or_a_repeated_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt: no such file"):
        read_prompt_table([f"{tmp_path}/gone.txt"], DEFAULTS)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"prompts: got .*a\.txt'; expected each file once"):
        read_prompt_table([f"{tmp_path}/a.txt"] * 2, DEFAULTS)
