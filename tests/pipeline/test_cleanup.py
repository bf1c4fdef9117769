"""Removal of what runs and the version cache no longer need: what is shown, what is removed, and what never is."""

import dataclasses
import fcntl
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.__main__ import main
from pipeline import manifest, run_pipeline, tracking
from pipeline.cleanup.cache_cleanup import find_in_cache
from pipeline.cleanup.run_cleanup import find_in_run
from pipeline.errors import StorageError
from pipeline.evaluation.evaluate import EvaluationManifest
from pipeline.manifest import DistilledManifest
from pipeline.recipe import parse
from pipeline.registry import mlflow_registry
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.registry.version_cache import fetch_version
from pipeline.schedules.history import DONE, FAILED, RUNNING, Attempt, History, ScheduledRun
from pipeline.storage import Folder

RECIPE = parse("", ['prompts.sources=[{path="mine"}]'])
DISTILLED = DistilledManifest(
    recipe=RECIPE,
    teacher_sha256="1",
    student_sha256="2",
    student_raw_sha256="3",
    prompts={},
    mlflow_run="5",
    metrics={"step": 3},
)
NOW = "2026-11-29T03:00:00+00:00"
PIECES = ("images/used.parquet", "images/old.parquet", "scores/used-clip.parquet", "scores/old-clip.parquet")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/ml.db")


def write_evaluation(folder, *, finished=True):
    for name in PIECES:
        folder.write(name, b"p" * 100)
    if finished:
        folder.write_table("scores.parquet", pa.table({"images": ["used"], "prompt": ["a cat"]}))
        manifest.write(folder, EvaluationManifest(recipe=RECIPE, student_sha256="2"))


def write_run(root, *, distilled=True, evaluated=True):
    """Write a run with two checkpoints, a student, and evaluations of the student and of a checkpoint."""
    run = Folder.from_uri(root)
    run.write("distilled/run.json", b"{}")
    for name in ("checkpoint_1/ema.pt", "checkpoint_2/ema.pt", "checkpoint_manager_snapshot.json"):
        run.write(f"distilled/train/{name}", b"c" * 1000)
    run.write("distilled/student/model.safetensors", b"s" * 10)
    run.write("prompts/shard-0.parquet", b"p")
    if distilled:
        manifest.write(run / "distilled", DISTILLED)
    write_evaluation(run / "evaluation", finished=evaluated)
    write_evaluation(run / "distilled/versions/000001-abc/evaluation", finished=evaluated)
    return run


def list_names(run):
    return {str(entry.path).removeprefix(f"{run.path}/") for entry in run.walk()}


OLD_PIECES = {
    f"{folder}/{piece}"
    for folder in ("evaluation", "distilled/versions/000001-abc/evaluation")
    for piece in PIECES
    if "old" in piece
}
CHECKPOINTS = {f"distilled/train/checkpoint_{number}/ema.pt" for number in (1, 2)}


def test_without_yes_nothing_is_removed_and_sizes_are_shown(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    run.write("distilled/train/checkpoint_1/raw.pt", b"c" * 2**21)
    before = list_names(run)
    assert main(["clean", "--run", run.uri]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert list_names(run) == before
    (checkpoint,) = [line for line in lines if "checkpoint_1" in line]
    assert checkpoint.split()[:3] == ["2.0", "MiB", f"{run.uri}/distilled/train/checkpoint_1"]
    assert checkpoint.endswith("checkpoint of a finished run")
    assert lines[-1].split(maxsplit=2) == ["2.0", "MiB", "in all; --yes removes it"]


@pytest.mark.parametrize("where", ["local", "s3"])
def test_yes_removes_checkpoints_and_old_pieces_alone(where, tmp_path, request, capsys):
    run = write_run(tmp_path / "run" if where == "local" else f"{request.getfixturevalue('bucket')}/run")
    before = list_names(run)
    assert main(["clean", "--run", run.uri, "--yes"]) == 0
    assert "removed" in capsys.readouterr().out
    assert list_names(run) == before - OLD_PIECES - CHECKPOINTS
    assert main(["clean", "--run", run.uri, "--yes"]) == 0
    assert capsys.readouterr().out.split() == ["0.0", "MiB", "removed"]


def test_a_bucket_of_runs_is_no_schedule(bucket):
    assert bucket == "s3://runs"
    assert find_in_run(write_run(f"{bucket}/20261129T0300Z"))


def test_an_unfinished_run_keeps_its_checkpoints_and_its_evaluation_the_pieces(tmp_path):
    run = write_run(tmp_path / "run", distilled=False, evaluated=False)
    assert find_in_run(run) == []


def test_a_damaged_manifest_stops_the_command(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    run.write("distilled/manifest.json", b"{}")
    before = list_names(run)
    assert main(["clean", "--run", run.uri, "--yes"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list_names(run) == before


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    (tmp_path / "train/checkpoint_1").mkdir(parents=True)
    assert main(["clean", "--run", str(tmp_path), "--yes"]) == 2
    assert "--run: got " in (error := capsys.readouterr().err)
    assert "expected the folder of a run, with distilled/run.json" in error
    assert (tmp_path / "train/checkpoint_1").is_dir()


def test_a_link_to_a_checkpoint_is_kept(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "run/distilled/train/checkpoint_3")
    assert not [entry for entry in find_in_run(run) if "checkpoint_3" in entry.uri]


@pytest.mark.parametrize("state", [RUNNING, FAILED])
def test_a_scheduled_run_that_may_go_on_is_not_cleaned(state, tmp_path, capsys):
    run = write_run(tmp_path / "weekly/runs/20261129T0300Z")
    history = History(Folder.from_uri(tmp_path / "weekly"))
    record = history.write(ScheduledRun("20261129T0300Z", state, attempts=(Attempt(NOW, NOW),)))
    assert main(["clean", "--run", run.uri, "--yes"]) == 2
    assert f"scheduled run 20261129T0300Z is {state} and may go on" in capsys.readouterr().err
    assert (tmp_path / "weekly/runs/20261129T0300Z/distilled/train/checkpoint_1").is_dir()
    history.write(dataclasses.replace(record, state=DONE))
    assert main(["clean", "--run", run.uri, "--yes"]) == 0
    assert not (tmp_path / "weekly/runs/20261129T0300Z/distilled/train/checkpoint_1").exists()


@pytest.fixture
def finished_steps(monkeypatch):
    """Replace the steps of a run by ones that have nothing to do, since its folder is there."""
    version = RegisteredVersion("nasa-tiny", 1, "champion", "models:/nasa-tiny/1", "the first version")
    for name in ("prepare", "evaluate", "format_summary"):
        monkeypatch.setattr(run_pipeline, name, lambda *_, **__: "")
    monkeypatch.setattr(run_pipeline, "distill", lambda *_: DISTILLED)
    monkeypatch.setattr(run_pipeline, "register_run", lambda *_: version)


@pytest.mark.parametrize("kept", [True, False])
def test_a_registered_run_keeps_its_checkpoints_if_the_recipe_says_so(kept, tmp_path, finished_steps):
    run, lines = write_run(tmp_path / "run"), []
    before = list_names(run)
    recipe = parse("", [f"retention.keep_checkpoints={str(kept).lower()}"])
    run_pipeline.run_pipeline(recipe, run, "sqlite://", log=lines.append)
    assert list_names(run) == (before if kept else before - OLD_PIECES - CHECKPOINTS)
    assert ("removed 6 files and folders that are no longer needed, 0.0 MiB" in lines) is not kept


def test_a_run_is_complete_if_nothing_can_be_removed(tmp_path, finished_steps, monkeypatch):
    def fail(self):
        raise StorageError("the disk is read-only")

    monkeypatch.setattr(Folder, "delete", fail)
    lines = []
    recipe = parse("", ["retention.keep_checkpoints=false"])
    assert run_pipeline.run_pipeline(recipe, write_run(tmp_path / "run"), "sqlite://", log=lines.append).version == 1
    assert lines[-1] == "retention.keep_checkpoints: nothing more was removed: the disk is read-only"


def test_a_registered_run_with_a_damaged_manifest_is_complete(tmp_path, finished_steps):
    run, lines = write_run(tmp_path / "run"), []
    run.write("evaluation/manifest.json", b"{}")
    recipe = parse("", ["retention.keep_checkpoints=false"])
    assert run_pipeline.run_pipeline(recipe, run, "sqlite://", log=lines.append).version == 1
    assert lines[-1].startswith("retention.keep_checkpoints: nothing more was removed: ")


@pytest.fixture
def cached(four_versions, tmp_path):
    """Return the tracking URI and the cached folder of each of the four versions, by number."""
    shutil.copy(four_versions[0], tmp_path / "ml.db")
    uri = f"sqlite:///{tmp_path}/ml.db"
    return uri, {number: fetch_version(uri, "nasa-tiny", number).root for number in ("1", "2", "3", "4")}


def find_named(uri):
    with tracking.open_client(uri) as client:
        return set(mlflow_registry.get_aliases(client, "nasa-tiny").values())


def test_cached_copies_without_an_alias_are_removed(cached, tmp_path, capsys):
    uri, folders = cached
    named = find_named(uri)
    assert 0 < len(named) < 4
    run = write_run(tmp_path / "run")
    assert main(["clean", "--run", run.uri, "--yes"]) == 0
    assert {number for number, folder in folders.items() if folder.is_dir()} == named
    assert "of nasa-tiny, which has no alias" in capsys.readouterr().out


def test_a_cached_version_that_mlflow_does_not_have_is_kept(cached, tmp_path):
    uri, folders = cached
    other = folders["1"].with_name("nasa-other-1-0123456789abcdef")
    other.mkdir()
    changed = folders["1"].with_name("nasa-tiny-1-0123456789abcdef")  # of another server, with a student of its own
    changed.mkdir()
    found = {Path(entry.uri) for entry in find_in_cache(uri)}
    assert not found & {other, changed}
    with pytest.raises(StorageError):
        find_in_cache("http://127.0.0.1:9")


def test_cut_off_downloads_are_removed_unless_one_is_going_on(cached, tmp_path):
    uri, folders = cached
    folder = folders[min(find_named(uri))]
    partial = folder.with_name(f"{folder.name}.{'0' * 32}.partial")
    partial.mkdir()
    assert partial in {Path(entry.uri) for entry in find_in_cache(uri)}
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert partial not in {Path(entry.uri) for entry in find_in_cache(uri)}


def test_a_copy_that_a_process_begins_to_use_is_kept(cached, tmp_path, monkeypatch, capsys):
    uri, folders = cached
    run = write_run(tmp_path / "run")
    number = min(set(folders) - find_named(uri))
    found = [entry for entry in find_in_cache(uri) if Path(entry.uri) == folders[number]]
    monkeypatch.setattr("pipeline.cleanup.cache_cleanup.find_in_cache", lambda _: found)
    with folders[number].with_name(f"{folders[number].name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["clean", "--run", run.uri, "--yes"]) == 0
    assert folders[number].is_dir()
    assert "kept: it is in use" in capsys.readouterr().out
