import io

import pyarrow.parquet as pq
import pytest

from datasets_prep.negatives import COMMON_TERMS
from pipeline import manifest, prompts
from pipeline.errors import UserError
from pipeline.prepare import NEGATIVES, SCHEMA, prepare
from pipeline.recipe import parse
from pipeline.storage import Folder

SMALL = ("prompts.count=70", "prompts.negative_draws=40", "prompts.rows_per_shard=32", "train.batch_size=12")


@pytest.fixture
def folder(tmp_path):
    return Folder.of(tmp_path / "prompts")


def own(tmp_path, content, *overrides):
    file = tmp_path / "own.txt"
    file.write_bytes(content)
    return parse("", [*SMALL, f"prompts.source={str(file)!r}", *overrides])


def table(folder, name):
    return pq.read_table(io.BytesIO(folder.read(name)))


def rows(folder, count):
    tables = [table(folder, f"shard-{number:05d}.parquet") for number in range(count)]
    assert all(each.schema == SCHEMA for each in tables)
    return [row for each in tables for row in each.to_pylist()]


def test_the_embedded_prompts(folder):
    counts = prepare(parse("", SMALL), folder)
    negatives = table(folder, NEGATIVES)
    assert counts == {"prompts": 70, "shards": 3, "negative_prompts": negatives.num_rows}
    assert [row["index"] for row in rows(folder, 3)] == list(range(70))
    assert sum(negatives["weight"].to_pylist()) == 40
    record = prompts.check(folder)
    assert record["kind"] == "prepare"
    assert parse(record["recipe"]) == parse("", SMALL)
    assert set(record["files"]) == {*(f"shard-{n:05d}.parquet" for n in range(3)), NEGATIVES}
    assert record["files"]["shard-00002.parquet"]["rows"] == 6


def test_the_same_recipe_gives_the_same_files(folder, tmp_path):
    again, other = Folder.of(tmp_path / "again"), Folder.of(tmp_path / "other")
    for place, seed in ((folder, 0), (again, 0), (other, 1)):
        prepare(parse("", [*SMALL, f"seed={seed}"]), place)
    first, second, third = (prompts.check(place)["files"] for place in (folder, again, other))
    assert first == second
    assert first["shard-00000.parquet"]["sha256"] != third["shard-00000.parquet"]["sha256"]


def test_one_s_own_prompts(folder, tmp_path):
    lines = [f"prompt {i}, ünï" for i in range(20)]
    prepare(own(tmp_path, "\r\n \n".join(lines).encode()), folder)
    assert [row["prompt"] for row in rows(folder, 1)] == lines
    assert set(table(folder, NEGATIVES)["negative_prompt"].to_pylist()) == set(COMMON_TERMS)


def test_a_list_shorter_than_a_batch_is_repeated(folder, tmp_path):
    prepare(own(tmp_path, b"a\nb\nc\nd\ne"), folder)
    assert [row["prompt"] for row in rows(folder, 1)] == list("abcde") * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "own.txt' is not UTF-8 text \\(byte 3\\)"),
        (b"", "prompts.source: 0 prompts do not fill one batch of 12"),
        (b" \n\n", "prompts.source: 0 prompts do not fill one batch of 12"),
    ],
)
def test_a_file_without_prompts_is_refused(folder, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        prepare(own(tmp_path, content), folder)
    assert not folder.has(manifest.NAME)


def test_a_byte_order_mark_is_no_part_of_a_prompt(folder, tmp_path):
    prepare(own(tmp_path, "a".encode("utf-8-sig")), folder)
    assert rows(folder, 1)[0]["prompt"] == "a"


def test_a_missing_file_is_named(folder):
    with pytest.raises(UserError, match=r"prompts.source: 'gone.txt' is no file; allowed: a text file, or \"shapes\""):
        prepare(parse("", ["prompts.source=gone.txt"]), folder)


def test_too_few_prompts_are_refused(folder):
    with pytest.raises(UserError, match="11 prompts do not fill one batch of 12"):
        prepare(parse("", [*SMALL, "prompts.count=11"]), folder)


def test_a_truncated_file_is_noticed(folder):
    prepare(parse("", SMALL), folder)
    content = folder.read("shard-00001.parquet")
    folder.write("shard-00001.parquet", content[:-10])
    with pytest.raises(UserError, match=f"shard-00001.parquet: {len(content) - 10} bytes that differ from the"):
        prompts.check(folder)


def test_a_missing_file_of_the_manifest_is_noticed(folder, tmp_path):
    prepare(parse("", SMALL), folder)
    (tmp_path / "prompts" / "shard-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00001.parquet: missing; the manifest lists it"):
        prompts.check(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no complete prepare here \\(no manifest.json\\); run `python -m jobs prepare` first"),
        (b"{", "manifest.json: not valid JSON"),
        (b'{"kind": "distill"}', "holds 'distill'; allowed: 'prepare'"),
    ],
)
def test_an_incomplete_or_other_folder_is_refused(folder, content, message):
    if content is not None:
        folder.write(manifest.NAME, content)
    with pytest.raises(UserError, match=message):
        prompts.check(folder)
