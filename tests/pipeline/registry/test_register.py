"""Registering: one version for one student, whose artifacts are there before it, whatever is interrupted."""

from pathlib import Path

import mlflow
import pytest

from pipeline import manifest
from pipeline.registry import register, store

NAME = "nasa-tiny"


def state(client):
    """All that a registry holds of the model, but for times."""
    return (
        store.aliases(client, NAME),
        [(found.version, found.tags, found.description, found.source) for found in store.versions(client, NAME)],
        client.get_registered_model(NAME).description,
    )


def test_a_version_holds_the_student_its_lineage_and_its_scores(uri, client, candidate, tmp_path):
    first = candidate(0, mean=0.5)
    outcome = register.register(first, uri)
    assert outcome == {
        "model": NAME,
        "version": 1,
        "alias": "champion",
        "uri": "models:/nasa-tiny/1",
        "decision": "the first version",
    }
    tags = client.get_model_version(NAME, "1").tags
    assert tags["clean_and_right"].startswith("0.50")
    assert (tags["step"], tags["code"], tags["data_sha256"]) == ("100", "0.1.0+abc", first.data_sha256)
    assert client.get_model_version(NAME, "1").run_id == first.mlflow_run
    root = Path(mlflow.artifacts.download_artifacts("models:/nasa-tiny/1", dst_path=str(tmp_path / "down")))
    assert manifest.folder_hash(root / "student") == first.student_sha256 == tags["student_sha256"]
    assert (root / "recipe.toml").read_text() == first.recipe
    assert (root / "evaluation/scores.parquet").read_bytes() == first.evaluation.read("scores.parquet")
    assert not [file for file in root.rglob("*") if file.suffix in (".pkl", ".bin", ".pyc")]


def test_several_students_of_a_run_lie_side_by_side(uri, client, candidate):
    for number in range(2):
        register.register(candidate(number), uri)
    sources = [found.source for found in store.versions(client, NAME)]
    hashes = [manifest.folder_hash(Path(source.removeprefix("file://")) / "student") for source in sources]
    assert hashes == [candidate(1).student_sha256, candidate(0).student_sha256]


def test_registering_twice_is_one_version(uri, client, candidate):
    for number in (0, 1):
        register.register(candidate(number, mean=0.5 + 0.1 * number), uri)
    before = state(client)
    for number in (0, 1):
        register.register(candidate(number, mean=0.5 + 0.1 * number), uri)
    assert state(client) == before


def interrupted_at(call, monkeypatch):
    """Every registry write and upload counts; the one of this number fails."""
    count = 0

    def watched(write):
        def counted(*args, **options):
            nonlocal count
            count += 1
            if count == call:
                raise KeyboardInterrupt
            return write(*args, **options)

        return counted

    for name in ("create_model_version", "set_model_version_tag", "set_registered_model_alias", "log_artifact"):
        monkeypatch.setattr(mlflow.MlflowClient, name, watched(getattr(mlflow.MlflowClient, name)))
    for name in ("update_model_version", "update_registered_model", "delete_registered_model_alias"):
        monkeypatch.setattr(mlflow.MlflowClient, name, watched(getattr(mlflow.MlflowClient, name)))
    return lambda: count


def test_an_interruption_anywhere_and_a_second_call_end_in_the_same_state(uri, client, candidate, monkeypatch):
    """The better student of two, interrupted at each write in turn."""
    register.register(candidate(0, mean=0.5), uri)
    better = candidate(1, mean=0.7)
    backup = Path(uri.removeprefix("sqlite:///")).read_bytes()
    with monkeypatch.context() as patch:
        writes = interrupted_at(0, patch)
        register.register(better, uri)
    expected, total = state(client), writes()
    uploads = total - 25  # the last of the uploads stand for all of them
    for call in range(max(1, uploads), total + 1):
        Path(uri.removeprefix("sqlite:///")).write_bytes(backup)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupted_at(call, patch)
            register.register(better, uri)
        assert store.aliases(client, NAME)["champion"] in {str(v.version) for v in store.versions(client, NAME)}
        register.register(better, uri)
        assert state(client) == expected, f"interrupted at write {call} of {total}"
