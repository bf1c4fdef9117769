import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_prep.benchmark_prompts import sample_pairs
from jobs.__main__ import main
from pipeline import manifest
from pipeline.prompts.prepare_benchmarks import BenchmarksManifest
from pipeline.storage import Folder

STYLES = ("anime", "concept-art", "paintings", "photo")


def read_table(folder, name):
    return pq.read_table(io.BytesIO((Folder.from_uri(folder) / "benchmarks").read(name)))


@pytest.fixture
def negopt(tmp_path):
    """Return a file with rows as NegOpt has them: repeated, blank, or without a prompt or negative."""
    pairs = [(f"prompt {i % 40}", f"ugly {i % 40}") for i in range(60)] + [("x", None), ("y", " "), (None, "z")]
    columns = {"prompt": [a for a, _ in pairs], "negative_prompt": [b for _, b in pairs], "likes": [1] * len(pairs)}
    pq.write_table(pa.table(columns), tmp_path / "negopt.parquet")
    return str(tmp_path / "negopt.parquet")


@pytest.fixture
def hpsv2(tmp_path):
    folder = tmp_path / "benchmark"
    folder.mkdir()
    for style in STYLES:
        (folder / f"{style}.json").write_text(json.dumps([f"{style} {i}" for i in range(800)]))
    return folder


def test_all_three_benchmarks_are_prepared(tmp_path, negopt, hpsv2):
    arguments = ["prepare-benchmarks", "--run", str(tmp_path / "run"), "--hpsv2", str(hpsv2), "--pairs", "40"]
    assert main([*arguments, "--negopt", negopt]) == 0
    assert read_table(tmp_path / "run", "exclusion_pairs.parquet")["negative_prompt"].to_pylist() == [
        "male", "female", "young", "old", "cat", "dog",
    ]  # fmt: skip
    rows = read_table(tmp_path / "run", "negopt_pairs.parquet").to_pylist()
    assert sorted((row["prompt"], row["negative_prompt"]) for row in rows) == sorted(
        (f"prompt {i}", f"ugly {i}") for i in range(40)
    )
    styled = read_table(tmp_path / "run", "hpsv2.parquet")
    assert styled.num_rows == 3200
    assert styled.to_pylist()[800] == {"style": "concept-art", "index": 0, "prompt": "concept-art 0"}
    record = manifest.read(Folder.from_uri(tmp_path / "run/benchmarks"), BenchmarksManifest)
    assert {name: file.rows for name, file in record.files.items()} == {
        "exclusion_pairs.parquet": 6, "negopt_pairs.parquet": 40, "hpsv2.parquet": 3200,
    }  # fmt: skip


def test_sampled_pairs_depend_only_on_the_seed(tmp_path, negopt):
    draws = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run = str(tmp_path / name)
        assert main(["prepare-benchmarks", "--run", run, "--negopt", negopt, "--pairs", "10", "--seed", seed]) == 0
        draws.append(read_table(run, "negopt_pairs.parquet")["prompt"].to_pylist())
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "photo.json").unlink(), "photo.json: missing"),
        (lambda folder: (folder / "photo.json").write_text("["), "photo.json is not valid JSON"),
        (lambda folder: (folder / "photo.json").write_text("[1]"), "photo.json: got other JSON; expected a list"),
        (lambda folder: (folder / "photo.json").write_text('["a"]'), "photo.json: got 1 prompts; expected 800."),
    ],
)
def test_invalid_hpsv2_files_are_reported(tmp_path, hpsv2, capsys, change, message):
    change(hpsv2)
    assert main(["prepare-benchmarks", "--run", str(tmp_path / "run"), "--hpsv2", str(hpsv2)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_too_few_pairs_are_reported(tmp_path, negopt, capsys):
    assert main(["prepare-benchmarks", "--run", str(tmp_path / "run"), "--negopt", negopt]) == 2
    assert "got 40 distinct pairs; expected at least 30000." in capsys.readouterr().err


def test_a_missing_file_is_named_once(tmp_path, capsys):
    assert main(["prepare-benchmarks", "--run", str(tmp_path / "run"), "--negopt", str(tmp_path / "gone.parquet")]) == 2
    assert capsys.readouterr().err.count("--negopt") == 1


def test_a_pair_is_kept_word_for_word():
    pairs = [('"Hello" on a\n sign,', "'tis --ugly")]
    assert sample_pairs(pairs, 1, 0).to_pylist() == [
        {"index": 0, "prompt": '"Hello" on a sign,', "negative_prompt": "'tis --ugly"}
    ]
