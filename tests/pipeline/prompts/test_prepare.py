import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_prep.negative_corpus import COMMON_TERMS
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.prompts import file_cleaning
from pipeline.prompts.negative_sampler import NEGATIVES
from pipeline.prompts.prepare import CARD, CLEANED, SCHEMA, prepare
from pipeline.prompts.prompt_dataset import load_manifest
from pipeline.recipe import parse
from pipeline.storage import Folder

SMALL = ("prompts.count=70", "prompts.negative_draws=40", "prompts.rows_per_shard=32", "train.batch_size=12")
OVERRIDES = ("prompts.negative_count=50", "train.batch_size=12")


@pytest.fixture
def folder(tmp_path):
    return Folder.from_uri(tmp_path / "prompts")


def write_source(tmp_path, content, *overrides, name="own.txt"):
    (tmp_path / name).write_bytes(content)
    return build_recipe(tmp_path / name, overrides=overrides)


def build_recipe(*paths, overrides=()):
    """Return a recipe with these sources."""
    sources = ", ".join(f"{{path = {json.dumps(str(path))}}}" for path in paths)
    return parse("", [*OVERRIDES, f"prompts.sources=[{sources}]", *overrides])


def read_table(folder, name):
    return pq.read_table(io.BytesIO(folder.read(name)))


def read_rows(folder, source="shapes"):
    record = load_manifest(folder)
    tables = [read_table(folder, name) for name in record.list_shards(source)]
    assert all(shard.schema == SCHEMA for shard in tables)
    return [row for shard in tables for row in shard.to_pylist()]


def read_texts(folder, source="own"):
    return sorted(row["prompt"] for row in read_rows(folder, source))


def test_the_bundled_shapes_prompts_are_prepared(folder):
    record = prepare(parse("", SMALL), folder)
    negatives = read_table(folder, NEGATIVES)
    assert (record.prompts, record.shards, record.epoch) == (70, 3, 70)
    assert record.negative_prompts == negatives.num_rows
    assert [row["index"] for row in read_rows(folder)] == list(range(70))
    assert sum(negatives["weight"].to_pylist()) == 40
    assert record.kind == "prepare"
    assert record.recipe == parse("", SMALL)
    assert set(record.files) == {*(f"shard-shapes-{n:05d}.parquet" for n in range(3)), NEGATIVES}
    assert record.files["shard-shapes-00002.parquet"].rows == 6


def test_the_same_recipe_gives_the_same_files(folder, tmp_path):
    repeated, other = Folder.from_uri(tmp_path / "again"), Folder.from_uri(tmp_path / "other")
    for target, seed in ((folder, 0), (repeated, 0), (other, 1)):
        prepare(parse("", [*SMALL, f"seed={seed}"]), target)
    first, second, third = (load_manifest(target).files for target in (folder, repeated, other))
    assert first == second
    assert first["shard-shapes-00000.parquet"].sha256 != third["shard-shapes-00000.parquet"].sha256


def test_a_text_file_is_prepared(folder, tmp_path):
    lines = [f"prompt {i}, ünï" for i in range(20)]
    prepare(write_source(tmp_path, "\r\n \n".join(lines).encode()), folder)
    assert read_texts(folder) == sorted(lines)
    negatives = read_table(folder, NEGATIVES)["negative_prompt"].to_pylist()
    assert len(set(negatives)) == 50
    assert set(COMMON_TERMS) < set(negatives)


def test_several_sources_are_stored_apart_and_deduplicated_together(folder, tmp_path):
    (tmp_path / "laion").mkdir()
    columns = {"TEXT": ["A red fox!", "a blue fox", "a green fox"], "punsafe": [0.0, 0.0, 0.9]}
    pq.write_table(pa.table(columns), tmp_path / "laion" / "part.parquet")
    (tmp_path / "laion" / "_SUCCESS").write_bytes(b"")
    lines = [json.dumps({"img_path": "x", "prompt": text}) for text in ("a red fox --ar 3:2", "a red fox", "a tree")]
    (tmp_path / "journeydb.jsonl").write_text("\n".join([*lines, "broken"]))
    record = prepare(build_recipe(tmp_path / "journeydb.jsonl", tmp_path / "laion"), folder)
    assert read_texts(folder, "journeydb") == ["a red fox", "a tree"]
    assert read_texts(folder, "laion") == ["a blue fox"]
    assert {name: source.removed for name, source in record.sources.items()} == {
        "journeydb": {"unreadable": 1, "exact duplicate": 1},
        "laion": {"unsafe": 1, "exact duplicate": 1},
    }
    for source in record.sources.values():
        assert source.rows == source.prompts + sum(source.removed.values())
    assert [row["index"] for row in read_rows(folder, "journeydb")] == [0, 1]


def test_near_duplicates_are_removed(folder, tmp_path):
    text = "a portrait of an old sailor with a white beard and a pipe in heavy rain by a harbour at night"
    content = f"{text}\n{text.replace('heavy', 'light')}\na tree".encode()
    record = prepare(write_source(tmp_path, content, "prompts.near_duplicates=0.7"), folder)
    assert read_texts(folder) == [text, "a tree"]
    assert record.sources["own"].statistics["samples"]["near duplicate"] == [text.replace("heavy", "light")]
    record = prepare(write_source(tmp_path, content, "prompts.near_duplicates=0"), Folder.from_uri(tmp_path / "all"))
    assert record.prompts == 3


def test_an_epoch_takes_the_quota_of_each_source(folder, tmp_path):
    for name, count in (("a", 30), ("b", 100)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(count)))
    sources = f"[{{path='{tmp_path}/a.txt', weight=1.5}}, {{path='{tmp_path}/b.txt', weight=2, name='other'}}]"
    record = prepare(parse("", [*OVERRIDES, f"prompts.sources={sources}"]), folder)
    assert {name: source.per_epoch for name, source in record.sources.items()} == {"a": 30, "other": 40}
    assert (record.prompts, record.epoch) == (130, 70)


def test_preparing_again_cleans_only_new_files(folder, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.txt").write_text("".join(f"one {i}\n" for i in range(50)))
    recipe, cleaned = build_recipe(tmp_path / "in", overrides=["prompts.rows_per_shard=10"]), []
    original = file_cleaning.clean_chunk
    monkeypatch.setattr(
        file_cleaning, "clean_chunk", lambda message, *rest: cleaned.append(message) or original(message, *rest)
    )
    first = prepare(recipe, folder)
    assert len(cleaned) == 1
    times = {name: (tmp_path / "prompts" / name).stat().st_mtime_ns for name in folder.list_files()}
    assert prepare(recipe, folder) == first
    assert times == {name: (tmp_path / "prompts" / name).stat().st_mtime_ns for name in folder.list_files()}
    (tmp_path / "in" / "2.txt").write_text("two\n")
    messages = []
    assert prepare(recipe, folder, report=messages.append).prompts == 51
    assert len(cleaned) == 2
    assert "1 new files are cleaned" in messages[0]
    assert set(folder.list_files()) == {*load_manifest(folder).files, CARD, manifest.NAME}


def test_prompts_of_a_started_distillation_stay_unchanged(folder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.txt").write_text("one\n")
    record = prepare(build_recipe(tmp_path / "in"), folder)
    before = {name: folder.read(name) for name in folder.list_files()}
    (folder.parent / "distilled").write(manifest.RUN_FILE, b"{}")
    for number, count in ((2, 1), (3, 2)):
        (tmp_path / "in" / f"{number}.txt").write_text(f"{number}\n")
        messages = []
        assert prepare(build_recipe(tmp_path / "in"), folder, report=messages.append) == record
        (line,) = messages
        assert f"{count} new files are not included" in line
        assert "Pass another --run to include them." in line
        assert before == {name: folder.read(name) for name in folder.list_files()}
    with pytest.raises(UserError, match="seed: got 3"):
        prepare(build_recipe(tmp_path / "in", overrides=["seed=3"]), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["prompts.near_duplicates=0.5"], "prompts.near_duplicates: got 0.5; expected 0.8, as in "),
        (["seed=3"], "seed: got 3; expected 0, as in "),
        (["prompts.filters.language=en"], "prompts.filters: got {'language': 'en', "),
        (["prompts.sources=[{path='shapes'}]"], "prompts.sources: got 'shapes'; expected '"),
        ("one\nother\n", "prompts.sources: got 1 of 1 files changed or missing, such as '.*in/1.txt'; expected them"),
        ("", "prompts.sources: got 1 of 1 files changed or missing"),
    ],
)
def test_a_finished_folder_rejects_other_options_and_changed_files(folder, tmp_path, change, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.txt").write_text("one\n")
    prepare(build_recipe(tmp_path / "in"), folder)
    before = {name: folder.read(name) for name in folder.list_files()}
    if isinstance(change, str):
        (tmp_path / "in" / "1.txt").unlink()
        (tmp_path / "in" / ("1.txt" if change else "2.txt")).write_text(change or "one\n")
    with pytest.raises(UserError, match=message) as caught:
        prepare(build_recipe(tmp_path / "in", overrides=[] if isinstance(change, str) else change), folder)
    assert f"{folder.uri}, which holds 1 prompts of in. Pass another --run, or remove " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == {name: folder.read(name) for name in folder.list_files()}


def test_a_folder_without_its_manifest_is_prepared_from_the_cleaned_files(folder, tmp_path, monkeypatch):
    prepare(write_source(tmp_path, b"a fox\na dog\n"), folder)
    folder.remove(manifest.NAME)
    monkeypatch.setattr(file_cleaning, "clean_chunk", None)
    assert prepare(build_recipe(tmp_path / "own.txt", overrides=["seed=1"]), folder).prompts == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone.parquet", "prompts.negatives: got .*; expected an exist"), ("a.pkl", "prompts.negatives: .*got a pickle")],
)
def test_unreadable_negatives_are_reported(folder, tmp_path, name, message):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=message):
        prepare(write_source(tmp_path, b"a\n", f"prompts.negatives={str(tmp_path / name)!r}"), folder)
    assert not folder.list_files()


def test_files_cleaned_before_an_interruption_are_reused(folder, tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n")
    recipe, original, calls = build_recipe(tmp_path / "*.txt"), file_cleaning.clean_chunk, []

    def fail_third_call(message, *rest):
        calls.append(message.key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(message, *rest)

    monkeypatch.setattr(file_cleaning, "clean_chunk", fail_third_call)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, folder)
    assert not folder.exists(manifest.NAME)
    assert prepare(recipe, folder).prompts == 3
    assert len(calls) == 4
    assert len(set(calls)) == 3


def test_relative_paths_are_resolved_below_the_root(folder, tmp_path):
    (tmp_path / "root/mine").mkdir(parents=True)
    (tmp_path / "root/mine/1.txt").write_text("a\nb")
    pq.write_table(pa.table({"prompt": ["x"], "negative_prompt": ["six toes"]}), tmp_path / "root/negopt.parquet")
    root = [f"prompts.root={str(tmp_path / 'root')!r}", "prompts.negatives='negopt.parquet'"]
    prepare(build_recipe("mine/*.txt", overrides=root), folder)
    assert read_texts(folder, "mine") == ["a", "b"]
    assert "six toes" in read_table(folder, NEGATIVES)["negative_prompt"].to_pylist()


def test_negatives_are_read_from_a_file_with_their_counts(folder, tmp_path):
    columns = {"prompt": ["x"] * 4, "negative_prompt": ["blurry, six toes", "blurry, six toes", None, "six toes"]}
    pq.write_table(pa.table(columns), tmp_path / "negopt.parquet")
    prepare(write_source(tmp_path, b"a\nb", f"prompts.negatives={str(tmp_path / 'negopt.parquet')!r}"), folder)
    weights = {row["negative_prompt"]: row["weight"] for row in read_table(folder, NEGATIVES).to_pylist()}
    assert len(weights) == 50
    assert weights["blurry, six toes"] == 2
    assert weights["six toes"] == 1


def test_the_card_shows_what_was_removed_and_escapes_it(folder, tmp_path):
    prepare(
        write_source(tmp_path, b'nude <b>x</b> &lt;script&gt;"\na tree\n', "prompts.filters.remove_nsfw=true"), folder
    )
    page = folder.read(CARD).decode()
    assert "NSFW: 1 (50.00 %)" in page
    assert "nude x &lt;script&gt;" in page
    assert "<script" not in page
    assert "to below" in page


def test_blocked_texts_are_shown_only_in_the_card(folder, tmp_path):
    lines = ["a sexy <u>kid</u> --ar 3:2", "a naked child", "a boy's blue bicycle, children's book --ar 3:2"]
    record = prepare(write_source(tmp_path, "\n".join(lines).encode()), folder)
    assert read_texts(folder) == ["a boy's blue bicycle, children's book"]
    page, source = folder.read(CARD).decode(), record.sources["own"]
    assert source.statistics["blocked_terms"] == {"sexy + kid": 1, "naked + child": 1}
    for text, terms in (("a sexy kid", "[sexy + kid]"), ("a naked child", "[naked + child]")):
        assert f"{terms} {text}" in page
        assert text not in json.dumps(record.to_dict())
    assert "--parameter: 2 (66.67 %)" in page
    assert "children&#39;s book --ar 3:2</del>" in page
    assert source.statistics["changed"] == {"HTML": 1, "--parameter": 2}


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
def test_the_same_lines_give_the_same_counts_in_each_format(folder, tmp_path, ending):
    lines = ['"Hello", she said', "", "a, b, c", "--ar 3:2", "a naked child", "A, b; c!", " x ", "y" * 100_001]
    contents = {
        "txt": lines,
        "csv": ["prompt", *(json.dumps(line).replace('\\"', '""') for line in lines)],
        "jsonl": [json.dumps({"prompt": line}) for line in lines],
    }
    record = prepare(write_source(tmp_path, "\n".join(contents[ending]).encode() + b"\n", name=f"own.{ending}"), folder)
    source = record.sources["own"]
    assert read_texts(folder) == ['"Hello", she said', "a, b, c", "x"]
    assert source.rows == 8
    assert source.removed == {
        "empty": 2, "sexual terms about minors": 1, "exact duplicate": 1, "unreadable": 1
    }  # fmt: skip


def test_the_first_unreadable_row_is_named_with_its_file(folder, tmp_path):
    for number, content in enumerate((b"", b'{"x": 1}\nbroken\n', b"broken\n")):
        (tmp_path / f"{number}.jsonl").write_bytes(content)
    with pytest.raises(
        UserError, match=r"\(unreadable: 3\); .* first unreadable row is .*/1.jsonl: row 0: no prompt\.$"
    ):
        prepare(build_recipe(tmp_path / "*.jsonl"), folder)


def test_prompts_are_cleaned_the_same_on_ray(ray_cluster, folder, tmp_path, monkeypatch):
    for number, count in enumerate((7, 0, 25)):
        lines = [json.dumps({"prompt": f"file {number} line {i} --v 5"}) for i in range(count)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    recipe = build_recipe(tmp_path / "*.jsonl")
    monkeypatch.setattr(file_cleaning, "ROWS_PER_CHUNK", 4)
    prepare(recipe, folder)
    monkeypatch.setattr(file_cleaning, "MAX_IN_PROCESS_BYTES", 0)
    other = Folder.from_uri(tmp_path / "on-ray")
    prepare(recipe, other)
    first, second = load_manifest(folder), load_manifest(other)
    assert first.files == second.files
    assert first.sources == second.sources
    parts = sorted(path.name for path in (tmp_path / "on-ray" / CLEANED).rglob("*.parquet"))
    assert len(parts) == 2 + 1 + 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\n", r"'own': got no usable prompt \(unreadable: 1\); expected one or more"),
        (b"", r"prompts.sources: 'own': got no usable prompt \(no rows\)"),
        (b"--ar 3:2\nnaked child\n", "(empty: 1, sexual terms about minors: 1|sexual terms about minors: 1, empty: 1)"),
    ],
)
def test_a_file_without_prompts_is_rejected(folder, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        prepare(write_source(tmp_path, content), folder)
    assert not folder.exists(manifest.NAME)


def test_unreadable_rows_stop_the_preparation_if_requested(folder, tmp_path):
    with pytest.raises(UserError, match=r"own.txt: got 1 unreadable rows, the first row 1: not UTF-8; expected none"):
        prepare(write_source(tmp_path, b"good\n\xff\n", "prompts.on_unreadable=stop"), folder)
    assert not folder.exists(manifest.NAME)


def test_a_byte_order_mark_is_removed(folder, tmp_path):
    prepare(write_source(tmp_path, "a".encode("utf-8-sig")), folder)
    assert read_texts(folder) == ["a"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[{path='gone.txt'}]", "prompts.sources: got 'gone.txt'; expected an existing file, folder or pattern"),
        ("[{path='*.pkl'}]", "got a pickle, which runs the code in it"),
        ("[{path='a.txt'}, {path='./a.txt'}]", "prompts.sources: name: got 'a'; expected another name for each"),
        ("[{path='a.txt', name='../up'}]", "name: got '../up'; expected letters"),
        ("[{path='a.txt', name='x'}, {path='shapes'}]", 'sources: got "shapes" beside others; expected it alone'),
        ("[]", "prompts.sources: got \\[\\]; expected at least one entry"),
        ("[{path='a.txt', weight=-1}]", r"prompts.sources\[0\].weight: got -1; expected a number at least 0"),
        (
            "[{paht='a.txt'}]",
            r"prompts.sources\[0\].paht: got 'a.txt'; expected one of the fields path, name",
        ),
    ],
)
def test_invalid_sources_are_reported(folder, tmp_path, monkeypatch, sources, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=message):
        prepare(parse("", [f"prompts.sources={sources}"]), folder)
    assert not folder.exists(manifest.NAME)


def test_a_truncated_file_is_detected(folder):
    prepare(parse("", SMALL), folder)
    content = folder.read("shard-shapes-00001.parquet")
    folder.write("shard-shapes-00001.parquet", content[:-10])
    with pytest.raises(
        UserError, match=f"shard-shapes-00001.parquet: size: got {len(content) - 10}; expected the {len(content)} bytes"
    ):
        load_manifest(folder)


def test_a_missing_file_of_the_manifest_is_detected(folder, tmp_path):
    prepare(parse("", SMALL), folder)
    (tmp_path / "prompts" / "shard-shapes-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-shapes-00001.parquet: missing; the manifest lists it"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no complete prepare here \\(no manifest.json\\); run `python -m jobs prepare` first"),
        (b"{", "manifest.json is not valid JSON"),
        (b'{"kind": "distill"}', "kind: got 'distill'; expected 'prepare'"),
    ],
)
def test_an_incomplete_or_other_folder_is_rejected(folder, content, message):
    if content is not None:
        folder.write(manifest.NAME, content)
    with pytest.raises(UserError, match=message):
        load_manifest(folder)
