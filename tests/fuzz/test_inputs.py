"""Whatever people or machines put into a file: a result, or one line. No traceback, no hang, no lost file."""

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
BELOW = [
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


def one_line(call):
    """Its result, or None where it refused in one line."""
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
    one_line(lambda: recipe.parse(text))


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(FIELDS), st.dictionaries(st.sampled_from(BELOW), JSON, max_size=3) | JSON, max_size=3
    )
)
def test_any_values_in_a_recipe_s_fields(values):
    try:
        text = tomli_w.dumps(values)
    except (TypeError, ValueError, AttributeError):
        return  # TOML has no null, and lists of its own kind
    one_line(lambda: recipe.parse(text))


@QUICK
@given(st.lists(st.text(max_size=40), max_size=3))
@example(["train=1", "train.steps=2"])
@example(["train.steps.x=2"])
@example(["="])
@example(["name='\x00'"])
def test_any_overrides(overrides):
    found = one_line(lambda: recipe.load("shapes", overrides))
    if found is not None:
        assert recipe.parse(recipe.dump(found)) == found


@QUICK
@given(JSON | st.binary(max_size=60))
def test_any_manifest(tmp_path, content):
    folder = Folder.from_uri(tmp_path)
    folder.write(manifest.NAME, content if isinstance(content, bytes) else json.dumps(content).encode())
    one_line(lambda: prompt_dataset.load_manifest(folder))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Prepared prompts, and their manifest."""
    folder = Folder.from_uri(tmp_path_factory.mktemp("prompts"))
    sets = ["prompts.count=40", "prompts.negative_draws=20", "train.batch_size=8"]
    return folder, prepare(recipe.load("shapes", sets), folder)


@QUICK
@given(st.data())
def test_a_manifest_of_which_any_value_is_another(small, tmp_path, data):
    folder, record = small
    damaged = record.values()
    node = damaged
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(node)))
        if not isinstance(node[key], dict) or not node[key]:
            break
        node, parent = node[key], node
        parent[key] = node
    node[data.draw(st.sampled_from(sorted(node)))] = data.draw(JSON)
    own = Folder.from_uri(tmp_path)
    for name in folder.list_files():
        own.write(name, folder.read(name))
    own.write(manifest.NAME, json.dumps(damaged).encode())
    one_line(lambda: prompt_dataset.read_first_prompts(own))


@pytest.mark.parametrize("place", ["files", "sources"])
@pytest.mark.parametrize("value", [None, {"bytes": 1, "rows": 1, "sha256": "0"}])
def test_a_name_of_two_lines_in_a_manifest(small, tmp_path, place, value):
    _, record = small
    damaged = {**record.values(), "files": {}, place: {"one\ntwo": value}}
    own = Folder.from_uri(tmp_path)
    own.write(manifest.NAME, json.dumps(damaged).encode())
    with pytest.raises(UserError, match="one") as refused:
        prompt_dataset.load_manifest(own)
    assert "\n" not in str(refused.value)


@QUICK
@given(st.data())
def test_a_shard_of_which_any_byte_is_another(small, tmp_path, data):
    folder, record = small
    (name,) = record.list_shards("shapes")
    content = bytearray(folder.read(name))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    own = Folder.from_uri(tmp_path)
    own.write(name, bytes(content))
    with pytest.raises(UserError, match="differs from the manifest"):
        prompt_dataset.read_shard(own, name, record.files[name].sha256)


LINES = st.lists(st.text(max_size=60) | JSON.map(json.dumps), max_size=8)


@QUICK
@given(LINES, st.sampled_from(["txt", "jsonl", "csv", "tsv", "json"]))
@example(['{"prompt": 1}', '{"prompt": null}', "[]", '{"prompt": "a cat"'], "jsonl")
@example(["prompt,x", '"a', "b,c,d"], "csv")
def test_any_lines_as_prompts(tmp_path, lines, kind):
    """Every line is a row: a prompt, or what is wrong with it; unless all lines are JSON of another form."""
    content = "\n".join(lines)
    rows = _read(tmp_path / f"prompts.{kind}", content.encode("utf-8", "surrogatepass"))
    if kind in ("txt", "jsonl") and content.strip()[:1] not in ("[", "{"):
        assert len(rows) >= sum(bool(line.strip()) for line in content.split("\n"))


def _packed(content, layers):
    for layer in layers:
        content = layer(content)
    return content


def _tar(content):
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
LAYERS = [gzip.compress, bz2.compress, lzma.compress, _tar]


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
    """What it is told for may be wrong, cut or damaged: rows, or what is wrong."""
    whole = _packed(magic + content, layers)
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    if whole and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    for row in _read(tmp_path / f"prompts.{name}", whole):
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
    rows = _read(tmp_path / f"prompts.{kind}", bytes(content))
    assert rows, "a file that cannot be read is a row that says so"


def _read(file, content):
    """All rows that the file gives; each has a text or a problem, and the file is as it was."""
    file.write_bytes(content)
    own = PromptFile(LocalFileSystem(), str(file))
    try:
        rows = [row for table in islice(read_tables(own, 10), 10_000) for row in table.to_pylist()]
    except ValueError as error:  # in one line, of a file as a whole
        assert "\n" not in str(error)  # noqa: PT017
        rows = [{"text": None, "problem": str(error)}]
    assert file.read_bytes() == content
    return rows


@QUICK
@given(JSON | st.binary(max_size=60))
def test_any_schedule_tick_and_lease(tmp_path, content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    store = Folder.from_uri(tmp_path)
    store.write("nightly.json", text)
    one_line(lambda: ScheduleStore(store).read("nightly").recipe)
    past = History(store / "nightly")
    past.folder.write("20261125T0300Z.json", text)
    one_line(lambda: past.read("20261125T0300Z"))
    (store / "nightly").write("lease.json", text)
    one_line(lambda: lease_store(store / "nightly", "lease.json").read())


@QUICK
@given(st.text(max_size=30), st.lists(st.text(max_size=20), max_size=3))
def test_a_job_s_id_is_a_name_and_its_entrypoint_one_command(name, words):
    import shlex

    job = Job("prepare", tuple(words), name=name)
    assert set(job.id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
    assert shlex.split(job.entrypoint) == ["python", "-m", "jobs", "prepare", *words]
