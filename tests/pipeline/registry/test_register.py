"""Registration: one version for each student, after its artifacts are uploaded, despite any interruption."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from nasa import steer
from pipeline import logged_models, notifications
from pipeline.errors import UserError
from pipeline.hashing import hash_folder
from pipeline.recipe import dump
from pipeline.registry import descriptions, mlflow_registry, register
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.storage import Folder

NAME = "nasa-tiny"


def read_state(client):
    """Return all that the registry holds of the model, except times."""
    return (
        mlflow_registry.get_aliases(client, NAME),
        [
            (entry.version, entry.tags, entry.description, entry.source)
            for entry in mlflow_registry.list_versions(client, NAME)
        ],
        client.get_registered_model(NAME).description,
    )


def test_a_version_holds_the_student_its_lineage_and_its_scores(uri, client, candidate, tmp_path):
    first = candidate(0, mean=0.5)
    outcome = register.register(first, uri)
    decision = "the first version with a score"
    assert outcome == RegisteredVersion(NAME, 1, "champion", "models:/nasa-tiny/1", decision)
    tags = client.get_model_version(NAME, "1").tags
    assert tags["clean_and_right"].startswith("0.50")
    assert tags["nasa_scale"] == "0.65"
    assert (tags["step"], tags["code"], tags["data_sha256"]) == ("100", "0.1.0+abc", first.data_sha256)
    assert client.get_model_version(NAME, "1").run_id == first.mlflow_run
    (model,) = client.search_logged_models([client.get_run(first.mlflow_run).info.experiment_id])
    assert tags["model_id"] == model.model_id
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": 1}]
    assert not client.list_logged_model_artifacts(model.model_id), "the weights are uploaded once"
    page, run = client.get_model_version(NAME, "1").description, f"/runs/{first.mlflow_run}"
    assert f"/models/{model.model_id})" in page
    assert f"{run})" in page
    assert f"{run}/artifacts/{first.artifact_path}/evaluation/report.html)" in page
    root = Path(mlflow.artifacts.download_artifacts("models:/nasa-tiny/1", dst_path=str(tmp_path / "down")))
    assert hash_folder(root / "student") == first.student_sha256 == tags["student_sha256"]
    assert (root / "recipe.toml").read_text() == dump(first.recipe)
    assert (root / "evaluation/scores.parquet").read_bytes() == first.evaluation.read("scores.parquet")
    assert not [file for file in root.rglob("*") if file.suffix in (".pkl", ".bin", ".pyc")]


def test_several_students_of_a_run_are_stored_side_by_side(uri, client, candidate):
    for number in range(2):
        register.register(candidate(number), uri)
    sources = [entry.source for entry in mlflow_registry.list_versions(client, NAME)]
    hashes = [hash_folder(Path(source.removeprefix("file://")) / "student") for source in sources]
    assert hashes == [candidate(1).student_sha256, candidate(0).student_sha256]


def test_registering_twice_creates_one_version(uri, client, candidate):
    for number in (0, 1):
        register.register(candidate(number, mean=0.5 + 0.1 * number), uri)
    before = read_state(client)
    for number in (0, 1):
        register.register(candidate(number, mean=0.5 + 0.1 * number), uri)
    assert read_state(client) == before


def test_each_decision_is_announced_once(uri, client, candidate, monkeypatch):
    sent = []
    monkeypatch.setattr(notifications, "send", lambda options, notification: sent.append((options.url, notification)))
    url = ["notify.url='http://hook/x'"]
    for number, mean in ((0, 0.5), (0, 0.5), (1, 0.4)):
        register.register(candidate(number, mean=mean, overrides=url), uri)
    run = candidate(0).mlflow_run
    assert sent == [
        ("http://hook/x", notifications.Notification("promoted", NAME, 1, run)),
        ("http://hook/x", notifications.Notification("challenger", NAME, 2, run)),
    ]
    assert client.get_run(run).data.tags["last_event"] == "challenger"


WRITES = (
    "create_model_version",
    "set_logged_model_tags",
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "update_model_version",
    "update_registered_model",
)


def interrupt_write(call, monkeypatch):
    """Make one of the registry's writes fail, counted from 1; return a function that counts the writes."""
    count = 0

    def wrap(write):
        def counted_write(*args, **options):
            nonlocal count
            count += 1
            if count == call:
                raise KeyboardInterrupt
            return write(*args, **options)

        return counted_write

    for name in WRITES:
        monkeypatch.setattr(mlflow.MlflowClient, name, wrap(getattr(mlflow.MlflowClient, name)))
    return lambda: count


def test_a_newer_challenger_takes_the_alias_of_the_previous_one(uri, client, candidate):
    for number, mean in enumerate((0.5, 0.4, 0.3)):
        register.register(candidate(number, mean=mean), uri)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1", "challenger": "3"}
    states = [entry.tags["state"] for entry in mlflow_registry.list_versions(client, NAME)[:2]]
    assert states == [
        f"challenger since {descriptions.get_today()}",
        f"challenger until {descriptions.get_today()}, replaced by version 3",
    ]


@pytest.mark.parametrize(
    "mean", [pytest.param(0.7, id="better"), pytest.param(0.4, id="worse", marks=pytest.mark.slow)]
)
def test_a_second_call_completes_an_interrupted_registration(uri, client, candidate, monkeypatch, mean):
    """Each write to the registry is interrupted in turn; the database is restored in between."""
    register.register(candidate(0, mean=0.5), uri)
    other, database = candidate(1, mean=mean), Path(uri.removeprefix("sqlite:///"))
    logged_models.ensure(client, other.trained)  # as its evaluation did
    backup = database.read_bytes()
    with monkeypatch.context() as patch:
        writes = interrupt_write(0, patch)
        register.register(other, uri)
    expected, total = read_state(client), writes()
    monkeypatch.setattr(register, "upload_artifacts", lambda *_: None)  # the artifacts were uploaded the first time
    monkeypatch.setattr(register.version_artifacts, "build_artifacts", lambda *_: None)
    for call in range(1, total + 1):
        database.write_bytes(backup)
        with monkeypatch.context() as patch:
            interrupt_write(call, patch)
            with pytest.raises(KeyboardInterrupt):
                register.register(other, uri)
        aliases = mlflow_registry.get_aliases(client, NAME)
        assert aliases["champion"] in {str(entry.version) for entry in mlflow_registry.list_versions(client, NAME)}
        register.register(other, uri)
        assert read_state(client) == expected, f"interrupted at write {call} of {total}"


def test_an_interrupted_upload_is_completed(uri, client, candidate, monkeypatch):
    """No version is created, and the second call uploads what is missing."""
    first = candidate(0)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(register, "_create", interrupt)
        with pytest.raises(KeyboardInterrupt):
            register.register(first, uri)
    assert mlflow_registry.list_versions(client, NAME) == []
    root = Path(client.get_run(first.mlflow_run).info.artifact_uri.removeprefix("file://")) / first.artifact_path
    weights = root / "student/unet/diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    (root / "recipe.toml").unlink()
    (root / "README.md").write_bytes(b"?" * (root / "README.md").stat().st_size)
    register.register(first, uri)
    assert weights.read_bytes() == content
    assert (root / "recipe.toml").read_text() == dump(first.recipe)
    assert (root / "README.md").read_text().startswith("---")


def test_a_store_that_loses_uploads_is_reported(uri, client, candidate, monkeypatch):
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", lambda *_: None)
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", lambda *_: None)
    with pytest.raises(UserError, match="does not hold what was uploaded"):
        register.register(candidate(0), uri)
    assert mlflow_registry.list_versions(client, NAME) == []


def test_a_student_that_differs_from_its_manifest_is_rejected(uri, candidate, students):
    other = replace(candidate(0), student=Folder.from_uri(students / "1"))
    with pytest.raises(UserError, match="is not the student of its manifest"):
        register.register(other, uri)


def test_concurrent_registrations_of_a_student_create_one_version(uri, client, candidate, monkeypatch):
    """Both look for a version before either has created one."""
    first = candidate(0)
    find_lowest, calls = register._find_lowest_version, 0

    def find_nothing_first(*args):
        nonlocal calls
        calls += 1
        return None if calls == 1 else find_lowest(*args)

    register.register(first, uri)
    monkeypatch.setattr(register, "_find_lowest_version", find_nothing_first)
    assert register.register(first, uri).version == 1
    assert [str(entry.version) for entry in mlflow_registry.list_versions(client, NAME)] == ["1"]
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1"}


def test_a_new_evaluation_of_the_champion_makes_a_challenger_comparable(uri, client, candidate):
    """Scores of different versions of a metric are not comparable; scores of the same version are."""
    register.register(candidate(0, mean=0.5), uri)
    assert register.register(candidate(1, mean=0.7, options={"version": "2"}), uri) == RegisteredVersion(
        NAME,
        2,
        "challenger",
        "models:/nasa-tiny/2",
        "not comparable with version 1: the champion's clean_and_right has another version or other options",
    )
    assert register.register(candidate(0, mean=0.5, options={"version": "2"}), uri).alias == "champion"
    outcome = register.register(candidate(1, mean=0.7, options={"version": "2"}), uri)
    assert (outcome.version, outcome.alias) == (2, "champion")
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "2"}


def test_registering_a_replaced_champion_again_does_not_promote_it(uri, client, candidate):
    register.register(candidate(0, mean=0.5), uri)
    register.register(candidate(1, mean=0.6), uri)
    assert register.register(candidate(0, mean=0.9), uri).alias == ""
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "2"}


def test_the_decision_is_recorded(uri, client, candidate):
    for number, mean in enumerate((0.5, 0.7, 0.6)):
        outcome = register.register(candidate(number, mean=mean), uri)
    assert outcome.alias == "challenger"
    versions = {str(version.version): version for version in mlflow_registry.list_versions(client, NAME)}
    assert versions["1"].tags["state"] == f"champion until {descriptions.get_today()}, replaced by version 2"
    assert versions["2"].tags["state"] == f"champion since {descriptions.get_today()}"
    assert versions["2"].tags["previous_champion"] == "1"
    assert versions["2"].description.startswith(f"Champion since {descriptions.get_today()}: clean_and_right +0.2")
    assert versions["3"].tags["why"] == outcome.decision
    artifacts = Path(versions["3"].source.removeprefix("file://"))
    decision = json.loads((artifacts / "promotion.json").read_text())
    assert (decision["promoted"], decision["against"], decision["verdict"]) == (False, "2", outcome.decision)
    assert decision["rule"]["metric"] == "clean_and_right"
    assert decision["comparisons"][0]["high"] < 0
    page = client.get_registered_model(NAME).description
    assert page.startswith(
        f"**Champion: version 2**, clean_and_right 0.701 (0.651-0.751): champion since {descriptions.get_today()}. "
    )
    assert "versions/2" in page


def test_a_version_generates_the_same_image_by_mlflow_and_by_diffusers(uri, client, candidate, tmp_path):
    """Negative prompts are included, and a row gives the same image in any table."""
    register.register(candidate(0), uri)
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    table = pd.DataFrame(
        {
            "prompt": ["a cat", "a dog", "a cat"],
            "negative_prompt": ["", "red", "red"],
            "seed": [3, 4, 3],
            "scale": [0.5, 0.5, 0.5],
        }
    )
    images = [np.array(Image.open(io.BytesIO(png))) for png in model.predict(table)]
    root = mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(tmp_path))
    pipe = DiffusionPipeline.from_pretrained(f"{root}/student")
    options = {"num_inference_steps": 1, "guidance_scale": 0, "output_type": "np"}
    for row, image in zip(table.to_dict("records"), images, strict=True):
        generator = torch.Generator().manual_seed(row["seed"])
        with steer(pipe, row["negative_prompt"] or None, row["scale"]):
            expected = pipe(row["prompt"], generator=generator, **options).images[0]
        np.testing.assert_allclose(image, 255 * expected, atol=1)
    assert not np.array_equal(images[0], images[2])
    (alone,) = model.predict(pd.DataFrame({"prompt": ["a cat"], "seed": [3]}))
    np.testing.assert_allclose(np.array(Image.open(io.BytesIO(alone))).astype(int), images[0], atol=1)
    assert model.metadata.signature.inputs.input_names() == ["prompt", "negative_prompt", "seed", "scale"]


def test_a_version_loads_without_ray_and_without_the_checkout(uri, candidate, tmp_path):
    register.register(candidate(0), uri)
    code = (
        "import sys, mlflow, pandas as pd\n"
        f"mlflow.set_tracking_uri({uri!r})\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@champion')\n"
        "(png,) = model.predict(pd.DataFrame({'prompt': ['a cat'], 'negative_prompt': ['red']}))\n"
        "assert png.startswith(b'\\x89PNG')\n"
        "assert not {'ray', 'pipeline', 'deepspeed'} & set(sys.modules)\n"
        "assert '/versions/' in sys.modules['nasa'].__file__\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
