import json
from types import SimpleNamespace

import pytest
import ray.train
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.storage import Folder
from pipeline.training import checkpoint_restore


@pytest.mark.parametrize("text", ["", '{"a": [1, ', "\x00"])
def test_a_truncated_snapshot_is_removed_and_checkpoints_are_kept(tmp_path, text):
    (tmp_path / "checkpoint_1").mkdir()
    (tmp_path / checkpoint_restore.SNAPSHOT_FILE).write_text(text)
    assert checkpoint_restore.remove_uncommitted_checkpoints(Folder.from_uri(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_1"]
    assert not checkpoint_restore.remove_uncommitted_checkpoints(Folder.from_uri(tmp_path)), (
        "without a snapshot every checkpoint may be needed"
    )
    assert (tmp_path / "checkpoint_1").exists()


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_checkpoints_missing_from_the_snapshot_are_removed(request, tmp_path, storage):
    folder = Folder.from_uri(request.getfixturevalue("bucket") + "/train" if storage == "s3" else tmp_path / "train")
    committed, pending = {"checkpoint_dir_name": "checkpoint_1"}, {"checkpoint_dir_name": "checkpoint_2"}
    content = json.dumps({"checkpoint_results": [committed], "latest": None, "pending": [pending]})
    folder.write(checkpoint_restore.SNAPSHOT_FILE, content.encode())
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3", "versions"):
        (folder / name).write("state.json", b"{}")
    assert not checkpoint_restore.remove_uncommitted_checkpoints(folder)
    assert folder.list_dirs() == ["checkpoint_1", "checkpoint_2", "versions"]
    assert folder.read(checkpoint_restore.SNAPSHOT_FILE).decode() == content


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a run to which checkpoints can be added, with the names of those that were loaded."""
    storage = SimpleNamespace(storage_filesystem=fs.LocalFileSystem(), experiment_fs_path=str(tmp_path))
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: storage))
    corrupt, loaded = {}, []
    monkeypatch.setattr(checkpoint_restore.checkpoint, "find_corruption", lambda folder: corrupt.get(folder.name, ""))

    def load(distiller, folder):
        loaded.append(folder.name)
        return json.loads((folder / "state.json").read_text())["step"]

    def add(name, step, attempt=0):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"step": step, "attempt": attempt}))

    monkeypatch.setattr(checkpoint_restore.checkpoint, "load", load)
    messages = []
    actor = SimpleNamespace(log=SimpleNamespace(remote=messages.append))
    distiller = SimpleNamespace(rank=0, attempt=0)
    return SimpleNamespace(
        add=add,
        corrupt=corrupt,
        loaded=loaded,
        messages=messages,
        restore=lambda latest=None: checkpoint_restore.restore(distiller, latest, actor),
    )


def test_without_a_snapshot_the_intact_checkpoint_with_the_most_steps_is_restored(run, tmp_path):
    """The times in the names do not matter."""
    run.add("checkpoint_2026-11-24_03", step=8)
    run.add("checkpoint_2026-11-24_05", step=4)
    run.add("checkpoint_2026-11-24_04", step=12)
    (tmp_path / "checkpoint_2026-11-24_06").mkdir()  # incomplete: without a state
    run.add("other", step=99)
    run.corrupt["checkpoint_2026-11-24_04"] = "x is missing"
    assert run.restore() == 8
    assert run.loaded == ["checkpoint_2026-11-24_03"]
    assert len(run.messages) == 1
    assert "checkpoint_2026-11-24_04: x is missing" in run.messages[0]


def test_a_checkpoint_of_a_later_attempt_takes_precedence(run):
    run.add("checkpoint_1", step=8)
    run.add("checkpoint_2", step=4, attempt=1)
    assert run.restore() == 4


@pytest.mark.parametrize("damaged", [False, True])
def test_training_starts_anew_without_an_intact_checkpoint(run, damaged):
    if damaged:
        run.add("checkpoint_1", step=8)
        run.corrupt["checkpoint_1"] = "x is missing"
    assert run.restore() == 0
    assert not run.loaded


def test_corruption_of_all_reported_checkpoints_is_a_user_error(run, monkeypatch, tmp_path):
    for number in (1, 2):
        run.add(f"checkpoint_{number}", step=4 * number)
        run.corrupt[f"checkpoint_{number}"] = "x is missing"
    first, latest = (ray.train.Checkpoint.from_directory(tmp_path / f"checkpoint_{number}") for number in (1, 2))
    reported = [SimpleNamespace(checkpoint=item) for item in (first, latest)]
    monkeypatch.setattr(ray.train, "get_all_reported_checkpoints", lambda _: reported)
    with pytest.raises(
        UserError, match=r"every checkpoint is corrupt: .*checkpoint_2: x is missing; .*checkpoint_1: x is"
    ):
        run.restore(latest)


def test_corruption_seen_by_one_process_applies_to_all(run, monkeypatch):
    run.add("checkpoint_1", step=4)
    run.add("checkpoint_2", step=8)
    rounds = []

    def gather(results, value):
        rounds.append(value)
        results[:] = [value, "x is missing" if len(rounds) == 1 else ""]

    monkeypatch.setattr(checkpoint_restore.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(checkpoint_restore.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(checkpoint_restore.dist, "broadcast_object_list", lambda objects, src: None)
    monkeypatch.setattr(checkpoint_restore.dist, "all_gather_object", gather)
    assert run.restore() == 4
    assert run.loaded == ["checkpoint_1"]
