"""Registering: one version for one student, whose artifacts are there before it, whatever is interrupted."""

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
from pipeline.errors import UserError
from pipeline.hashing import hash_folder
from pipeline.recipe import dump
from pipeline.registry import descriptions, mlflow_registry, register
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.storage import Folder

NAME = "nasa-tiny"


def state(client):
    """All that a registry holds of the model, but for times."""
    return (
        mlflow_registry.get_aliases(client, NAME),
        [
            (found.version, found.tags, found.description, found.source)
            for found in mlflow_registry.list_versions(client, NAME)
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
    assert (tags["step"], tags["code"], tags["data_sha256"]) == ("100", "0.1.0+abc", first.data_sha256)
    assert client.get_model_version(NAME, "1").run_id == first.mlflow_run
    root = Path(mlflow.artifacts.download_artifacts("models:/nasa-tiny/1", dst_path=str(tmp_path / "down")))
    assert hash_folder(root / "student") == first.student_sha256 == tags["student_sha256"]
    assert (root / "recipe.toml").read_text() == dump(first.recipe)
    assert (root / "evaluation/scores.parquet").read_bytes() == first.evaluation.read("scores.parquet")
    assert not [file for file in root.rglob("*") if file.suffix in (".pkl", ".bin", ".pyc")]


def test_several_students_of_a_run_lie_side_by_side(uri, client, candidate):
    for number in range(2):
        register.register(candidate(number), uri)
    sources = [found.source for found in mlflow_registry.list_versions(client, NAME)]
    hashes = [hash_folder(Path(source.removeprefix("file://")) / "student") for source in sources]
    assert hashes == [candidate(1).student_sha256, candidate(0).student_sha256]


def test_registering_twice_is_one_version(uri, client, candidate):
    for number in (0, 1):
        register.register(candidate(number, mean=0.5 + 0.1 * number), uri)
    before = state(client)
    for number in (0, 1):
        register.register(candidate(number, mean=0.5 + 0.1 * number), uri)
    assert state(client) == before


WRITES = (
    "create_model_version",
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "update_model_version",
    "update_registered_model",
)


def interrupted_at(call, monkeypatch):
    """The registry's write of this number, from 1, fails; returns how many there were."""
    count = 0

    def watched(write):
        def counted(*args, **options):
            nonlocal count
            count += 1
            if count == call:
                raise KeyboardInterrupt
            return write(*args, **options)

        return counted

    for name in WRITES:
        monkeypatch.setattr(mlflow.MlflowClient, name, watched(getattr(mlflow.MlflowClient, name)))
    return lambda: count


def test_a_newer_challenger_takes_the_alias_of_the_one_before(uri, client, candidate):
    for number, mean in enumerate((0.5, 0.4, 0.3)):
        register.register(candidate(number, mean=mean), uri)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1", "challenger": "3"}
    states = [found.tags["state"] for found in mlflow_registry.list_versions(client, NAME)[:2]]
    assert states == [
        f"challenger since {descriptions.get_today()}",
        f"challenger until {descriptions.get_today()}, replaced by version 3",
    ]


@pytest.mark.parametrize(
    "mean", [pytest.param(0.7, id="better"), pytest.param(0.4, id="worse", marks=pytest.mark.slow)]
)
def test_an_interruption_anywhere_and_a_second_call_end_in_the_same_state(uri, client, candidate, monkeypatch, mean):
    """Interrupted at each write to the registry in turn, with the database put back in between."""
    register.register(candidate(0, mean=0.5), uri)
    other, database = candidate(1, mean=mean), Path(uri.removeprefix("sqlite:///"))
    backup = database.read_bytes()
    with monkeypatch.context() as patch:
        writes = interrupted_at(0, patch)
        register.register(other, uri)
    expected, total = state(client), writes()
    monkeypatch.setattr(register, "publish", lambda *_: None)  # the artifacts are there from the first time
    monkeypatch.setattr(register.version_artifacts, "build_artifacts", lambda *_: None)
    for call in range(1, total + 1):
        database.write_bytes(backup)
        with monkeypatch.context() as patch:
            interrupted_at(call, patch)
            with pytest.raises(KeyboardInterrupt):
                register.register(other, uri)
        named = mlflow_registry.get_aliases(client, NAME)
        assert named["champion"] in {str(found.version) for found in mlflow_registry.list_versions(client, NAME)}
        register.register(other, uri)
        assert state(client) == expected, f"interrupted at write {call} of {total}"


def test_an_upload_that_was_cut_off_is_completed(uri, client, candidate, monkeypatch):
    """No version is made of it, and the second call uploads what is missing."""
    first = candidate(0)

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(register, "_create", cut)
        with pytest.raises(KeyboardInterrupt):
            register.register(first, uri)
    assert mlflow_registry.list_versions(client, NAME) == []
    root = Path(client.get_run(first.mlflow_run).info.artifact_uri.removeprefix("file://")) / first.artifact_path
    weights = root / "student/unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    (root / "recipe.toml").unlink()
    (root / "README.md").write_bytes(b"?" * (root / "README.md").stat().st_size)
    register.register(first, uri)
    assert weights.read_bytes() == whole
    assert (root / "recipe.toml").read_text() == dump(first.recipe)
    assert (root / "README.md").read_text().startswith("---")


def test_a_store_that_loses_what_it_was_given_is_refused(uri, client, candidate, monkeypatch):
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", lambda *_: None)
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", lambda *_: None)
    with pytest.raises(UserError, match="does not hold what was uploaded"):
        register.register(candidate(0), uri)
    assert mlflow_registry.list_versions(client, NAME) == []


def test_a_student_that_is_not_its_manifest_s_is_refused(uri, candidate, students):
    other = replace(candidate(0), student=Folder.from_uri(students / "1"))
    with pytest.raises(UserError, match="is not the student of its manifest"):
        register.register(other, uri)


def test_two_that_register_the_same_student_at_once_make_one_version(uri, client, candidate, monkeypatch):
    """Both have looked before either has made a version."""
    first = candidate(0)
    look, blind = register._find_lowest_version, 0

    def both_see_nothing(*args):
        nonlocal blind
        blind += 1
        return None if blind == 1 else look(*args)

    register.register(first, uri)
    monkeypatch.setattr(register, "_find_lowest_version", both_see_nothing)
    assert register.register(first, uri).version == 1
    assert [str(found.version) for found in mlflow_registry.list_versions(client, NAME)] == ["1"]
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1"}


def test_another_evaluation_of_the_champion_lets_a_challenger_be_compared(uri, client, candidate):
    """Scored by another version of the metric there is no comparison; scored again by the same, there is."""
    register.register(candidate(0, mean=0.5), uri)
    assert register.register(candidate(1, mean=0.7, options={"version": "2"}), uri) == RegisteredVersion(
        NAME,
        2,
        "challenger",
        "models:/nasa-tiny/2",
        "not comparable with version 1: the champion's clean_and_right is of another version or other options",
    )
    assert register.register(candidate(0, mean=0.5, options={"version": "2"}), uri).alias == "champion"
    outcome = register.register(candidate(1, mean=0.7, options={"version": "2"}), uri)
    assert (outcome.version, outcome.alias) == (2, "champion")
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "2"}


def test_a_champion_that_was_replaced_stays_so_when_it_is_registered_again(uri, client, candidate):
    register.register(candidate(0, mean=0.5), uri)
    register.register(candidate(1, mean=0.6), uri)
    assert register.register(candidate(0, mean=0.9), uri).alias == ""
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "2"}


def test_the_decision_is_written_down(uri, client, candidate):
    for number, mean in enumerate((0.5, 0.7, 0.6)):
        outcome = register.register(candidate(number, mean=mean), uri)
    assert outcome.alias == "challenger"
    found = {str(version.version): version for version in mlflow_registry.list_versions(client, NAME)}
    assert found["1"].tags["state"] == f"champion until {descriptions.get_today()}, replaced by version 2"
    assert found["2"].tags["state"] == f"champion since {descriptions.get_today()}"
    assert found["2"].tags["previous_champion"] == "1"
    assert found["2"].description.startswith(f"Champion since {descriptions.get_today()}: clean_and_right +0.2")
    assert found["3"].tags["why"] == outcome.decision
    local = Path(found["3"].source.removeprefix("file://"))
    written = json.loads((local / "promotion.json").read_text())
    assert (written["promoted"], written["against"], written["verdict"]) == (False, "2", outcome.decision)
    assert written["rule"]["metric"] == "clean_and_right"
    assert written["comparisons"][0]["high"] < 0
    page = client.get_registered_model(NAME).description
    assert page.startswith(
        f"**Champion: version 2**, clean_and_right 0.701 (0.651-0.751): champion since {descriptions.get_today()}. "
    )
    assert "versions/2" in page


def test_a_version_generates_by_mlflow_and_by_diffusers(uri, client, candidate, tmp_path):
    """The same image by both, away from the negative too; a row is the same in any table."""
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
