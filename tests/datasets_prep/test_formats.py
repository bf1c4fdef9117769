"""Format detection by content: supported files of any name, and the reasons for rejecting others."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from datasets_prep.sources import PromptFile, decode_text, read_tables, tar_archives

TEXTS = ["a red fox, in the snow", 'a "lighthouse" at dusk', "two boats\non a lake", "caf\u00e9 \U0001f431"]
FLAT = [text.replace("\n", " ") for text in TEXTS]
OBJECTS = [{"url": f"https://example.org/{i}.jpg", "prompt": text, "width": 512} for i, text in enumerate(TEXTS)]


def read_rows(path, column="", size=3):
    tables = list(read_tables(PromptFile(fs.LocalFileSystem(), str(path), column), size))
    assert all(table.num_rows <= size for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def read_texts(path, column=""):
    actual = read_rows(path, column)
    assert not [row["problem"] for row in actual if row["problem"]]
    return [row["text"] for row in actual]


def read_problems(path, column=""):
    return [row["problem"] for row in read_rows(path, column) if row["problem"]]


def encode_csv(delimiter=",", line_end="\r\n"):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(OBJECTS[0]), delimiter=delimiter, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(OBJECTS)
    return out.getvalue().encode()


def encode_lines():
    return "".join(json.dumps(record) + "\n" for record in OBJECTS).encode()


def encode_parquet():
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(OBJECTS), sink)
    return sink.getvalue()


def encode_arrow(open_writer=pa.ipc.new_stream):
    sink = io.BytesIO()
    table = pa.Table.from_pylist(OBJECTS)
    with open_writer(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue()


def encode_arrow_file():
    return encode_arrow(pa.ipc.new_file)


def encode_list():
    return json.dumps(OBJECTS, indent=2).encode()


def encode_tar():
    return pack_tar({"data/prompts.jsonl": encode_lines()})


def pack_tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def compress_zstd(content):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


FORMATS = {
    "csv": encode_csv,
    "tsv": lambda: encode_csv("\t"),
    "jsonl": encode_lines,
    "json": encode_list,
    "parquet": encode_parquet,
    "arrow": encode_arrow,
    "feather": encode_arrow_file,
    "tar": encode_tar,
}
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": compress_zstd}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_each_format_is_read_in_each_compression(tmp_path, ending, compression):
    path = tmp_path / f"prompts.{ending}{compression}"
    path.write_bytes(COMPRESSIONS[compression](FORMATS[ending]()))
    assert read_texts(path) == TEXTS


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("name", ["wrong.parquet", "wrong.json", "wrong.csv", "wrong.gz"])
def test_the_format_is_detected_from_the_content(tmp_path, ending, name):
    (tmp_path / name).write_bytes(FORMATS[ending]())
    assert read_texts(tmp_path / name) == TEXTS


def test_two_layers_of_compression_are_read(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(bz2.compress(encode_csv())))
    assert read_texts(tmp_path / "a.csv.gz") == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "txt", "csv.gz"])
def test_a_byte_order_mark_determines_the_encoding(tmp_path, ending, encoding):
    kind, _, compression = ending.partition(".")
    content = FORMATS[kind]() if kind != "txt" else "\r\n".join(FLAT).encode()
    text = ("\ufeff" if encoding == "utf-16-be" else "") + content.decode()
    (tmp_path / f"a.{ending}").write_bytes(
        COMPRESSIONS[f".{compression}" if compression else ""](text.encode(encoding))
    )
    assert read_texts(tmp_path / f"a.{ending}") == (FLAT if kind == "txt" else TEXTS)
    assert decode_text(text.encode(encoding)) == content.decode()


def test_a_truncated_utf_16_file_yields_its_readable_part(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\ntwo\nthr".encode("utf-16")[:-1])
    actual = read_rows(tmp_path / "a.txt")
    assert [(row["text"], row["problem"]) for row in actual[:2]] == [("one", None), ("two", None)]
    assert actual[-1]["problem"].startswith("file: ")


def test_a_truncated_table_is_reported(tmp_path):
    """A file cut right after its schema is reported too."""
    complete = encode_arrow()
    for end in range(0, len(complete), 4):
        (tmp_path / "a.arrow").write_bytes(complete[:end])
        actual = read_rows(tmp_path / "a.arrow")
        assert actual, end
        assert len(actual) == len(TEXTS) or actual[-1]["problem"].startswith("file: ")


def test_a_batch_that_claims_to_exceed_the_memory_is_reported(tmp_path):
    """The length of a batch's body is an 8-byte number in its message."""
    complete = bytearray(encode_arrow())
    with pa.ipc.open_stream(bytes(complete)) as reader:
        schema = reader.schema.serialize().size
    body = pa.ipc.read_message(pa.BufferReader(bytes(complete[schema:]))).body.size
    position = complete.index(body.to_bytes(8, "little"), schema)
    complete[position + 6] = 1
    (tmp_path / "a.arrow").write_bytes(complete)
    assert read_problems(tmp_path / "a.arrow") == ["file: a batch is larger than memory"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_any_system_are_read(tmp_path, end):
    (tmp_path / "a.txt").write_bytes(end.join(FLAT).encode())
    assert read_texts(tmp_path / "a.txt") == FLAT
    (tmp_path / "a.csv").write_bytes(encode_csv(line_end=end).replace(b"boats\non", b"boats on"))
    assert read_texts(tmp_path / "a.csv") == FLAT


DOCUMENTS = {
    "list of objects": (OBJECTS, ""),
    "list of texts": (TEXTS, ""),
    "list within an object": ({"info": {"n": 4}, "images": [{"id": 1}], "annotations": OBJECTS}, ""),
    "texts within an object": ({"version": 1, "prompts": TEXTS}, ""),
    "columns": ({"width": [512] * 4, "prompt": TEXTS}, ""),
    "columns of pandas": ({"id": {"0": 7, "1": 8}, "prompt": {str(i): text for i, text in enumerate(TEXTS)}}, ""),
    "a column of pandas": ({"x": {"0": "no"}, "p": {str(i): text for i, text in enumerate(TEXTS)}, "z": {"0": 1}}, "p"),
    "objects by name": ({f"{i}.png": {"p": text} for i, text in enumerate(TEXTS)}, "p"),
    "wrapped rows": ({"rows": [{"row_idx": 0, "row": record} for record in OBJECTS]}, "row.prompt"),
    "column within the list": ({"data": OBJECTS}, "data.prompt"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("indent", [None, 4])
def test_json_documents_of_any_layout_are_read(tmp_path, name, indent):
    value, column = DOCUMENTS[name]
    (tmp_path / "a.json").write_text(json.dumps(value, indent=indent))
    assert read_texts(tmp_path / "a.json", column) == TEXTS


def test_concatenated_indented_objects_are_read(tmp_path):
    (tmp_path / "a.json").write_text("\n".join(json.dumps(record, indent=2) for record in OBJECTS))
    assert read_texts(tmp_path / "a.json") == TEXTS
    (tmp_path / "one.json").write_text(json.dumps(OBJECTS[0], indent=2))
    assert read_texts(tmp_path / "one.json") == TEXTS[:1]


@pytest.mark.parametrize("filler", ["", "x" * 3000])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.csv"])
def test_a_truncated_list_yields_its_readable_part(tmp_path, name, filler):
    """The lists are shorter and longer than the bytes that format detection inspects."""
    records = [{"prompt": f"number {i}", "filler": filler} for i in range(50)]
    lines = "[\n" + ",\n".join(map(json.dumps, records)) + "\n"
    for truncated, count in (
        (lines, 50), (json.dumps(records)[:-20], 49), (json.dumps(records, indent=2)[:-20], 49),
        (json.dumps({"prompts": records})[:-21], 49), (json.dumps({"prompts": records}, indent=1)[:-21], 49),
        (json.dumps([record["prompt"] for record in records])[:-4], 49),
    ):  # fmt: skip
        (tmp_path / name).write_text(truncated)
        actual = read_rows(tmp_path / name)
        assert [row["text"] for row in actual] == [*(f"number {i}" for i in range(count)), None]
        assert actual[-1]["problem"].startswith("file: not JSON from here on: ")


def test_a_trailing_comma_is_accepted(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(OBJECTS)[:-1] + ",]")
    assert read_texts(tmp_path / "a.json") == TEXTS


@pytest.mark.parametrize("first", ['{"prompt": "a', '{"prompt": "a"', '["a", "b'])
@pytest.mark.parametrize("count", [5, 5000])
def test_a_damaged_first_line_is_one_row(tmp_path, first, count):
    lines = [json.dumps({"prompt": f"number {i}"}) for i in range(count)]
    (tmp_path / "a.jsonl").write_text("\n".join([first, *lines]))
    assert [row["problem"] for row in read_rows(tmp_path / "a.jsonl")] == ["not JSON"] + [None] * count


def test_json_strings_are_read_line_by_line(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(text) + "\n" for text in TEXTS) + "3\n")
    assert [row["text"] for row in read_rows(tmp_path / "a.jsonl")] == [*TEXTS, None]
    assert read_problems(tmp_path / "a.jsonl", "x") == ["not an object"] * 5


def test_a_column_of_pandas_is_streamed_and_other_values_are_reported(tmp_path):
    values = {str(i): f"number {i}" for i in range(20_000)} | {"20000": None, "20001": 3}
    (tmp_path / "a.json").write_text(json.dumps({"prompt": values}))
    actual = read_rows(tmp_path / "a.json")
    assert [row["text"] for row in actual[:-2]] == [f"number {i}" for i in range(20_000)]
    assert [row["problem"] for row in actual[-2:]] == ["no prompt", "the prompt is not a string"]
    (tmp_path / "a.json").write_text(json.dumps({"prompt": {"en": "a cat", "de": "eine Katze"}}))
    assert read_problems(tmp_path / "a.json") == ["no prompt; it has prompt"]


@pytest.mark.parametrize("line", ['["Hello" on a sign]', '{"Hello", "world"} on a sign', '["open'])
def test_text_that_resembles_json_is_text(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"{line}\na cat\n")
    assert read_texts(tmp_path / "a.txt") == [line, "a cat"]


def test_a_long_list_is_streamed_up_to_an_error(tmp_path):
    records = [{"prompt": f"number {i}", "filler": "x" * 100} for i in range(20_000)]
    complete = json.dumps(records)
    (tmp_path / "a.json").write_text(complete)
    assert read_texts(tmp_path / "a.json") == [record["prompt"] for record in records]
    truncated = complete[: complete.index("number 15000") - 5]
    (tmp_path / "a.json").write_text(truncated)
    actual = read_rows(tmp_path / "a.json")
    assert [row["text"] for row in actual[:-1]] == [f"number {i}" for i in range(15_000)]
    assert actual[-1]["problem"].startswith("file: not JSON from here on: ")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"images": [{"id": 1}], "n": 3}, "no prompt; it has images, n"),
        ([], "file: an empty list"),
        ([{"x": 1}], "no prompt"),
        ([3], "not an object"),
    ],
)
def test_json_without_prompts_reports_its_keys(tmp_path, value, problem):
    (tmp_path / "a.json").write_text(json.dumps(value, indent=1))
    assert read_problems(tmp_path / "a.json") == [problem]


def build_image_samples(indent=None, ending="txt"):
    files = {}
    for i, text in enumerate(TEXTS):
        files[f"0000/{i:09d}.jpg"] = b"\xff\xd8\xff\xe0" + bytes(2_000_000 if i == 1 else 99)
        meta = {"caption": text, "url": "u", "key": f"{i}", "status": "success", "punsafe": 0.25}
        files[f"0000/{i:09d}.json"] = json.dumps(meta, indent=indent).encode()
        files[f"0000/{i:09d}.{ending}"] = text.encode()
    return files


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("without", ["", "json", "txt", "jpg"])
@pytest.mark.parametrize("name", ["00000.tar", "00000.tar.gz"])
def test_archives_of_img2dataset_are_read(tmp_path, indent, without, name):
    files = {
        file: content for file, content in build_image_samples(indent).items() if not file.endswith(without or "?")
    }
    (tmp_path / name).write_bytes(COMPRESSIONS[".gz" if name.endswith("gz") else ""](pack_tar(files)))
    assert read_texts(tmp_path / name) == TEXTS
    if without != "json":
        assert read_texts(tmp_path / name, "caption") == TEXTS
        assert {row["punsafe"] for row in read_rows(tmp_path / name)} == {0.25}


def test_an_image_without_a_caption_is_reported(tmp_path):
    (tmp_path / "a.tar").write_bytes(pack_tar({"1.jpg": b"x", "1.cls": b"3", "2.jpg": b"x", "2.txt": b"two"}))
    actual = read_rows(tmp_path / "a.tar")
    assert [row["text"] for row in actual] == [None, "two"]
    assert actual[0]["problem"] == "the sample has no caption; it has jpg"


def build_sample(stem, text, **files):
    return {f"{stem}.png": b"x", f"{stem}.txt": text.encode(), **files}


def test_samples_with_dots_in_their_names_are_distinguished(tmp_path, monkeypatch):
    files = {}
    for i in range(100):
        files |= build_sample(f"out/sdxl1.0_{i:04d}", f"caption {i}")
    (tmp_path / "a.tar").write_bytes(pack_tar(files))
    expected = [f"caption {i}" for i in range(100)]
    assert read_texts(tmp_path / "a.tar") == expected
    for limit in ("MAX_MEMBERS", "MAX_HELD_BYTES"):
        monkeypatch.setattr(tar_archives, limit, 7)
        assert read_texts(tmp_path / "a.tar") == expected
    (tmp_path / "cut.tar").write_bytes(pack_tar(files)[: 2 * 512 * 150])
    actual = read_rows(tmp_path / "cut.tar")
    assert [row["text"] for row in actual if row["text"]] == expected[:75]


@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)])
def test_the_files_of_a_webdataset_sample_are_one_row(tmp_path, order):
    files = {}
    for i, text in enumerate(FLAT):
        files |= build_sample(f"{i:06d}", text, **{f"{i:06d}.{part}.png": b"x" for part in ("depth", "seg", "zone")})
        files |= {f"{i:06d}.meta.json": b'{"punsafe": 0.25}'}
    (tmp_path / "a.tar").write_bytes(pack_tar({name: files[name] for name in order(files)}))
    assert sorted(read_texts(tmp_path / "a.tar")) == sorted(FLAT)
    assert {row["punsafe"] for row in read_rows(tmp_path / "a.tar")} == {0.25}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"1.jpg": b"", "1.de.txt": b"Fuchs", "1.en.txt": b"fox"}, ["Fuchs", "fox"]),
        ({"1.jpg": b"", "1.jpg.txt": b"one", "2.jpg": b"", "2.jpg.txt": b"two"}, ["one", "two"]),
        (build_sample("v1", "a") | build_sample("v1.5", "b") | {"v1.5.seg.png": b""}, ["a", "b"]),
        ({"p.txt": b"a\nb", "p.v2.txt": b"c", "p.v3.jsonl": b'{"prompt": "d"}'}, ["a", "b", "c", "d"]),
        ({"v1.5_1.png": b"", "v1.5_2.png": b""}, [None, None]),
    ],
)
def test_no_caption_of_an_archive_is_lost(tmp_path, files, expected):
    (tmp_path / "a.tar").write_bytes(pack_tar(files))
    assert [row["text"] for row in read_rows(tmp_path / "a.tar")] == expected
    assert all(row["text"] or row["problem"] for row in read_rows(tmp_path / "a.tar"))


def test_a_repeated_name_starts_another_sample(tmp_path):
    out = io.BytesIO()
    for content in (build_sample("1", "one"), build_sample("1", "two")):
        out.write(pack_tar(content)[: 4 * 512])
    (tmp_path / "a.tar").write_bytes(out.getvalue() + bytes(1024))
    assert read_texts(tmp_path / "a.tar") == ["one", "two"]


def test_an_archive_of_prompt_files_is_read(tmp_path):
    files = {
        "._a.txt": b"junk",
        "readme.md": b"no",
        "a.txt": b"one\ntwo",
        "b/c.csv": encode_csv(),
        "d.parquet": encode_parquet(),
    }
    (tmp_path / "a.tar").write_bytes(pack_tar(files))
    assert read_texts(tmp_path / "a.tar") == ["one", "two", *TEXTS, *TEXTS]


NESTED = [{"img_path": "x", "Task2": {"Caption": text, "Style": ["a"]}} for text in TEXTS] + [{"img_path": "y"}]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "arrow"])
def test_a_nested_column_is_read_in_each_format(tmp_path, ending):
    table, path = pa.Table.from_pylist(NESTED), tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    elif ending == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
    else:
        path.write_text("\n".join(map(json.dumps, NESTED)) if ending == "jsonl" else json.dumps(NESTED))
    actual = read_rows(path, "Task2.Caption")
    assert [row["text"] for row in actual] == [*TEXTS, None]
    assert actual[-1]["problem"] == "no prompt"
    assert "it has img_path" in read_problems(path, "Task3")[0] or ending.startswith("json")


def test_a_column_may_have_a_dot_in_its_name(tmp_path):
    pq.write_table(pa.table({"a.b": TEXTS}), tmp_path / "a.parquet")
    assert read_texts(tmp_path / "a.parquet", "a.b") == TEXTS
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"a.b": text}) for text in TEXTS))
    assert read_texts(tmp_path / "a.jsonl", "a.b") == TEXTS


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_the_delimiter_of_a_csv_is_detected(tmp_path, delimiter):
    (tmp_path / "a.csv").write_bytes(encode_csv(delimiter))
    assert read_texts(tmp_path / "a.csv") == TEXTS
    (tmp_path / "b.csv").write_bytes(f"sep={delimiter}\r\n".encode() + encode_csv(delimiter))
    assert read_texts(tmp_path / "b.csv") == TEXTS


def test_a_quoted_line_end_may_lie_at_the_end_of_a_block(tmp_path):
    """The file is long enough that blocks of 2^16 to 2^20 bytes end within a quoted line end."""
    expected = [f"{i} red\r\nblue fox " + "x" * (1500 + i % 97) for i in range(2000)]
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "prompt"], *enumerate(expected)])
    (tmp_path / "a.csv").write_bytes(out.getvalue().encode())
    assert read_texts(tmp_path / "a.csv") == expected


def test_a_field_that_is_larger_than_a_block_is_reported(tmp_path):
    (tmp_path / "a.csv").write_text(f'id,prompt\n1,"{"y" * 3_000_000}"\n2,next\n3,"{"z" * 20_000_000}"\n4,last\n')
    actual = read_rows(tmp_path / "a.csv")
    assert [row["text"] for row in actual if row["text"]] == ["next", "last"]
    assert actual[0]["problem"] == "prompt of more than 100000 bytes"
    assert len([row for row in actual if row["problem"]]) == 2


def test_an_unclosed_quote_is_reported(tmp_path):
    (tmp_path / "a.csv").write_text('id,prompt\n1,one\n2,"two\n3,three\n')
    assert read_problems(tmp_path / "a.csv") == ["a quote is not closed; the row spans 2 lines"]
    (tmp_path / "b.csv").write_text('prompt\n"Hello" on a sign\n"two\nlines, quoted"\n"open, and\na last, one\n')
    assert read_texts(tmp_path / "b.csv") == ['"Hello" on a sign', "two\nlines, quoted", '"open, and', "a last, one"]


@pytest.mark.parametrize(
    ("content", "description"),
    [
        (pickle.dumps(TEXTS), "a pickle, which runs the code"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "an image or a video"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "an array of numpy"),
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.txt", "a.gz"])
def test_unsupported_content_is_named(tmp_path, content, description, name):
    (tmp_path / name).write_bytes(content)
    (problem,) = read_problems(tmp_path / name)
    assert problem.startswith(f"file: no prompts: {description}")


WORDS = ["BZh is no word", "BZh9 in a row", "RIFF raff, a wave", "GIF8 cat", "PAR1 golf course", "PARE an apple",
         "FEA1 test", "ARROW1 in a target", "%PDF icon"]  # fmt: skip


@pytest.mark.parametrize("first", WORDS)
@pytest.mark.parametrize("name", ["a.txt", "a.gz"])
def test_text_that_resembles_another_format_is_text(tmp_path, first, name):
    (tmp_path / name).write_text(f"{first}\na cat\n")
    assert read_texts(tmp_path / name) == [first, "a cat"]


@pytest.mark.parametrize("header", [b"GIF87a", b"GIF89a", b"RIFF\x0a\x10\0\0WEBPVP8 ", b"RIFF\x0a\x10\0\0WAVEfmt "])
def test_media_files_are_named(tmp_path, header):
    (tmp_path / "a.txt").write_bytes(header + bytes(100))
    assert read_problems(tmp_path / "a.txt") == ["file: no prompts: an image or a video"]


def test_an_empty_bzip2_has_no_rows(tmp_path):
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(b""))
    assert read_rows(tmp_path / "a.txt.bz2") == []


def test_a_zip_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.csv", "w") as archive:
        archive.writestr("a.csv", encode_csv())
    assert read_problems(tmp_path / "a.csv") == ["file: no prompts: a zip archive; unpack it"]


LINES = [*FLAT, "", "   ", "{red, blue} car", '"all quoted"', "a,b;c|d\te", "--ar 3:2", "x" * 100_001, "it's, \\n"]


def test_the_same_lines_give_the_same_rows_in_each_format(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": line}) + "\n" for line in LINES))
    with (tmp_path / "a.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["prompt"], *([line] for line in LINES)])
    (tmp_path / "b.csv").write_text("\n".join(["prompt", *LINES]) + "\n")
    complete = [
        [(row["text"] or "").strip() for row in read_rows(tmp_path / name)] for name in ("a.txt", "a.jsonl", "a.csv")
    ]
    assert complete[0] == complete[1] == complete[2] == [line.strip() if len(line) <= 100_000 else "" for line in LINES]
    assert [text.strip('"') for text in complete[0]] == [
        (row["text"] or "").strip() for row in read_rows(tmp_path / "b.csv")
    ]
