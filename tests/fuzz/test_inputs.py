"""Any input gives a result or an error in one line: no traceback, no hang, no lost file."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from datasets_prep.sources import PromptFile, read_tables
from pipeline import manifest, recipe
from pipeline.cluster.job_submission import Job
from pipeline.errors import UserError
from pipeline.prompts import prompt_dataset
from pipeline.prompts.prepare import prepare
from pipeline.schedules.history import History
from pipeline.schedules.lease import lease_store
from pipeline.schedules.schedule_store import ScheduleStore
from pipeline.storage import Folder

QUICK = settings(max_examples=60, deadline=30_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["name", "seed", "teacher", "prompts", "method", "student", "train", "evaluation", "promotion", "schedule"]
SUBFIELDS = [
    "steps",
    "sources",
    "path",
    "num_workers",
    "metrics",
    "kind",
    "cron",
    "timezone",
    "scales",
    "filters",
    "guardrails",
]


def call_or_report(call):
    """Return the result of the call, or None if it raises a user error, which must be one line."""
    try:
        return call()
    except UserError as error:
        line = str(error)
    assert line
    assert "\n" not in line
    return None


@QUICK
@given(st.text(max_size=200))
@example("[train]\nsteps = 'x'\n")
@example("name = 1\n[train.steps]\n")
@example("prompts.sources = [1]")
def test_any_text_as_a_recipe(text):
    call_or_report(lambda: recipe.parse(text))


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(FIELDS), st.dictionaries(st.sampled_from(SUBFIELDS), JSON, max_size=3) | JSON, max_size=3
    )
)
def test_any_values_of_recipe_fields(values):
    try:
        text = tomli_w.dumps(values)
    except (TypeError, ValueError, AttributeError):
        return  # not representable in TOML, such as null
    call_or_report(lambda: recipe.parse(text))


@QUICK
@given(st.lists(st.text(max_size=40), max_size=3))
@example(["train=1", "train.steps=2"])
@example(["train.steps.x=2"])
@example(["="])
@example(["name='\x00'"])
def test_any_overrides(overrides):
    loaded = call_or_report(lambda: recipe.load("shapes", overrides))
    if loaded is not None:
        assert recipe.parse(recipe.dump(loaded)) == loaded


@QUICK
@given(JSON | st.binary(max_size=60))
def test_any_manifest(tmp_path, content):
    folder = Folder.from_uri(tmp_path)
    folder.write(manifest.NAME, content if isinstance(content, bytes) else json.dumps(content).encode())
    call_or_report(lambda: prompt_dataset.load_manifest(folder))


@pytest.fixture(scope="module")
def prepared_prompts(tmp_path_factory):
    """Return a folder of prepared prompts and its manifest."""
    folder = Folder.from_uri(tmp_path_factory.mktemp("prompts"))
    overrides = ["prompts.count=40", "prompts.negative_draws=20", "train.batch_size=8"]
    return folder, prepare(recipe.load("shapes", overrides), folder)


@QUICK
@given(st.data())
def test_a_manifest_with_any_changed_value(prepared_prompts, tmp_path, data):
    folder, record = prepared_prompts
    damaged = record.to_dict()
    node = damaged
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(node)))
        if not isinstance(node[key], dict) or not node[key]:
            break
        node, parent = node[key], node
        parent[key] = node
    node[data.draw(st.sampled_from(sorted(node)))] = data.draw(JSON)
    target = Folder.from_uri(tmp_path)
    for name in folder.list_files():
        target.write(name, folder.read(name))
    target.write(manifest.NAME, json.dumps(damaged).encode())
    call_or_report(lambda: prompt_dataset.read_first_prompts(target))


@pytest.mark.parametrize("section", ["files", "sources"])
@pytest.mark.parametrize("value", [None, {"bytes": 1, "rows": 1, "sha256": "0"}])
def test_a_name_with_a_line_break_in_a_manifest(prepared_prompts, tmp_path, section, value):
    _, record = prepared_prompts
    damaged = {**record.to_dict(), "files": {}, section: {"one\ntwo": value}}
    folder = Folder.from_uri(tmp_path)
    folder.write(manifest.NAME, json.dumps(damaged).encode())
    with pytest.raises(UserError, match="one") as caught:
        prompt_dataset.load_manifest(folder)
    assert "\n" not in str(caught.value)


@QUICK
@given(st.data())
def test_a_shard_with_any_changed_byte(prepared_prompts, tmp_path, data):
    folder, record = prepared_prompts
    (name,) = record.list_shards("shapes")
    content = bytearray(folder.read(name))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    target = Folder.from_uri(tmp_path)
    target.write(name, bytes(content))
    with pytest.raises(UserError, match="differs from the manifest"):
        prompt_dataset.read_shard(target, name, record.files[name].sha256)


LINES = st.lists(st.text(max_size=60) | JSON.map(json.dumps), max_size=8)


@QUICK
@given(LINES, st.sampled_from(["txt", "jsonl", "csv", "tsv", "json"]))
@example(['{"prompt": 1}', '{"prompt": null}', "[]", '{"prompt": "a cat"'], "jsonl")
@example(["prompt,x", '"a', "b,c,d"], "csv")
def test_any_lines_as_prompts(tmp_path, lines, kind):
    """Every line becomes a row with a prompt or a problem, unless all lines form a JSON document."""
    content = "\n".join(lines)
    rows = _read_rows(tmp_path / f"prompts.{kind}", content.encode("utf-8", "surrogatepass"))
    if kind in ("txt", "jsonl") and content.strip()[:1] not in ("[", "{"):
        assert len(rows) >= sum(bool(line.strip()) for line in content.split("\n"))


def _pack(content, layers):
    for layer in layers:
        content = layer(content)
    return content


def _pack_tar(content):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("1.jpg", "1.txt", "1.json", "2.json", "prompts.jsonl", "prompts.csv", "all.parquet"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


NAMES = ["jsonl", "json", "csv", "txt", "gz", "parquet", "arrow", "tar", "tar.gz", "csv.zst", "xz"]
MAGIC = [
    b"\x1f\x8b\x08",
    b"BZh9",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"\x04\x22\x4d\x18",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xff\xfe\0\0",
]
MAGIC += [
    b"PAR1",
    b"ARROW1\0\0",
    b"\xff\xff\xff\xff",
    b"PK\x03\x04",
    b"\x80\x04",
    b"[",
    b'{"prompt":',
    b'"',
    b"sep=,\n",
    b"prompt,x\n",
]
LAYERS = [gzip.compress, bz2.compress, lzma.compress, _pack_tar]


@settings(QUICK, max_examples=250)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(MAGIC) | st.just(b""),
    st.binary(max_size=300)
    | LINES.map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
    | JSON.map(lambda value: json.dumps(value, indent=1).encode()),
    st.lists(st.sampled_from(LAYERS), max_size=2),
    st.data(),
)
def test_any_content_under_any_name(tmp_path, name, magic, content, layers, data):
    """The content may be mislabelled, truncated or corrupt: each row still has a text or a problem."""
    packed = _pack(magic + content, layers)
    if data.draw(st.booleans()):
        packed = packed[: data.draw(st.integers(0, len(packed)))]
    if packed and data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(packed) - 1))
        packed = packed[:position] + bytes([data.draw(st.integers(0, 255))]) + packed[position + 1 :]
    for row in _read_rows(tmp_path / f"prompts.{name}", packed):
        assert (row["text"] is None) == bool(row["problem"])


@settings(QUICK, max_examples=200)
@given(st.data(), st.sampled_from(["parquet", "arrow"]))
def test_any_damage_to_a_table_of_prompts(tmp_path, data, kind):
    table = pa.table({"prompt": [f"a photo of thing {number}" for number in range(50)]})
    buffer = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, buffer, row_group_size=20)
    else:
        with pa.ipc.new_stream(buffer, table.schema) as stream:
            stream.write_table(table)
    content = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    rows = _read_rows(tmp_path / f"prompts.{kind}", bytes(content))
    assert rows, "an unreadable file gives a row with the problem"


def _read_rows(file, content):
    """Return all rows of the file, or one row with the problem, and check that the file is unchanged."""
    file.write_bytes(content)
    prompt_file = PromptFile(LocalFileSystem(), str(file))
    try:
        rows = [row for table in islice(read_tables(prompt_file, 10), 10_000) for row in table.to_pylist()]
    except ValueError as error:  # one line about the whole file
        assert "\n" not in str(error)  # noqa: PT017
        rows = [{"text": None, "problem": str(error)}]
    assert file.read_bytes() == content
    return rows


@QUICK
@given(JSON | st.binary(max_size=60))
def test_any_schedule_record_and_lease(tmp_path, content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    store = Folder.from_uri(tmp_path)
    store.write("nightly.json", text)
    call_or_report(lambda: ScheduleStore(store).read("nightly").recipe)
    history = History(store / "nightly")
    history.folder.write("20261125T0300Z.json", text)
    call_or_report(lambda: history.read("20261125T0300Z"))
    (store / "nightly").write("lease.json", text)
    call_or_report(lambda: lease_store(store / "nightly", "lease.json").read())


@QUICK
@given(st.text(max_size=30), st.lists(st.text(max_size=20), max_size=3))
def test_a_job_id_is_a_safe_name_and_the_entrypoint_is_one_command(name, words):
    import shlex

    job = Job("prepare", tuple(words), name=name)
    assert set(job.id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
    assert shlex.split(job.entrypoint) == ["python", "-m", "jobs", "prepare", *words]
