"""The formats of a download, and that a download which fails leaves nothing behind."""

import json
import shutil
from dataclasses import replace

import mlflow
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.__main__ import main
from pipeline import models
from pipeline.hashing import hash_folder
from pipeline.models import comfyui, single_file
from pipeline.recipe import parse
from pipeline.registry import mlflow_registry, register, version_download
from pipeline.storage import Folder
from pipeline.training.engines import add_student_lora
from pipeline.training.student_export import export

NAME = "nasa-tiny"
LORA = ["student.lora_rank=2", "student.lora_alpha=8"]


@pytest.fixture
def registry_uri(uri, four_versions):
    """Return a copy of the database with four versions, of which 3 is the champion."""
    shutil.copy(four_versions[0], uri.removeprefix("sqlite:///"))
    return uri


@pytest.fixture
def any_architecture(monkeypatch):
    """Accept the tests' small students, which ComfyUI does not know."""
    monkeypatch.setattr(comfyui, "require_comfyui_architecture", lambda student: "small")


@pytest.fixture
def lora_student(uri, candidate, tiny_teacher, tmp_path):
    """Register a LoRA student with random adapters; return its folder."""
    recipe = parse("", ['name="tiny"', f"teacher={str(tiny_teacher)!r}", *LORA])
    denoiser = models.load_denoiser(tiny_teacher)
    add_student_lora(recipe, denoiser)
    torch.manual_seed(0)
    adapters = {name: 0.3 * torch.randn_like(v) for name, v in denoiser.state_dict().items() if "lora_" in name}
    save_file(adapters, tmp_path / "adapters.safetensors")
    student = Folder.from_uri(tmp_path / "student")
    sha256 = export(recipe, tiny_teacher, "", tmp_path / "adapters.safetensors", student)
    register.register(replace(candidate(0), student=student, student_sha256=sha256, recipe=recipe), uri)
    return tmp_path / "student"


def download(uri, out, *arguments):
    return main(["models", "download", "--name", NAME, "--out", str(out), *arguments, "--tracking-uri", uri])


def list_files(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_version_lies_in_the_folder_itself(registry_uri, client, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert download(registry_uri, out) == 0
    assert capsys.readouterr().out == f"{NAME} version 3: {out}; its pipeline is in {out}/student\n"
    assert {"MLmodel", "README.md", "recipe.toml", "student"} <= set(list_files(out))
    assert hash_folder(out / "student") == client.get_model_version(NAME, "3").tags["student_sha256"]
    assert list_files(out.parent) == ["out"]


def test_an_empty_folder_is_replaced_and_another_is_not(registry_uri, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert download(registry_uri, ".", "--version", "1") == 0
    assert (tmp_path / "empty/student/model_index.json").is_file()
    (tmp_path / "file").write_text("mine")
    for name in ("file", "empty"):
        assert download(registry_uri, tmp_path / name) == 2
        assert "; expected an empty or a new folder." in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_changed_student_is_refused_and_leaves_nothing(registry_uri, client, tmp_path, capsys):
    client.set_model_version_tag(NAME, "3", mlflow_registry.STUDENT, "0" * 64)
    (tmp_path / "here").mkdir()
    assert download(registry_uri, tmp_path / "here/out") == 2
    assert "is not what was registered (its checksum is another)" in capsys.readouterr().err
    assert list_files(tmp_path / "here") == []


@pytest.mark.parametrize("place", ["download_artifacts", "hash_folder", "build_single_file"])
def test_an_interrupted_download_leaves_nothing(place, registry_uri, tmp_path, monkeypatch, any_architecture):
    original = mlflow.artifacts.download_artifacts

    def interrupt(*arguments, **options):
        if place == "download_artifacts":
            original(*arguments, **options)
        raise KeyboardInterrupt

    module = mlflow.artifacts if place == "download_artifacts" else version_download
    monkeypatch.setattr(module, place, interrupt)
    (tmp_path / "here").mkdir()
    with pytest.raises(KeyboardInterrupt):
        version_download.download(registry_uri, NAME, tmp_path / "here/out", output_format="comfyui")
    assert list_files(tmp_path / "here") == []


def test_the_format_lora_is_the_adapter_s_file_and_its_options(lora_student, uri, tiny_teacher, tmp_path, capsys):
    out = tmp_path / "out"
    assert download(uri, out, "--format", "lora") == 0
    assert f"its options are in {out}/settings.json" in capsys.readouterr().out
    assert list_files(out) == [models.LORA_FILE, "settings.json"]
    assert (out / models.LORA_FILE).read_bytes() == (lora_student / models.LORA_FILE).read_bytes()
    assert json.loads((out / "settings.json").read_text()) == {
        "file": "pytorch_lora_weights.safetensors",
        "base_model": str(tiny_teacher),
        "lora_scale": 1.0,
        "scheduler": "DDIMScheduler",
        "call": models.build_call_options(lora_student),
        "nasa_scale": 0.65,
    }


def test_a_whole_student_has_no_adapter(registry_uri, tmp_path, capsys):
    assert download(registry_uri, tmp_path / "out", "--format", "lora") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "format: got 'lora' for version 3 of nasa-tiny, a whole student; expected a LoRA student. Extract" in line
    assert "`python -m jobs extract-lora`" in line
    assert not (tmp_path / "out").exists()


def test_the_format_comfyui_is_a_checkpoint_with_settings_and_a_workflow(
    registry_uri, students, tmp_path, any_architecture
):
    out = tmp_path / "out"
    assert download(registry_uri, out, "--format", "comfyui", "--version", "2") == 0
    file = "nasa-tiny-2.safetensors"
    assert list_files(out) == [file, "settings.json", "workflow_api.json"]
    pipe = models.load_pipeline(students / "1")
    read = single_file.read_single_file(load_file(out / file), pipe)
    for part, tensors in single_file.list_parts(pipe).items():
        assert all(torch.equal(read[part][name], value) for name, value in tensors.items())
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["file"], settings["kind"], settings["timesteps"]) == (file, "checkpoint", [999])
    assert settings["nasa_negative_prompt"]["scale"] == 0.65
    assert json.loads((out / "workflow_api.json").read_text())["1"]["inputs"]["ckpt_name"] == file


def test_the_format_comfyui_of_a_lora_student_is_its_file(lora_student, uri, tiny_teacher, tmp_path, any_architecture):
    out = tmp_path / "out"
    assert download(uri, out, "--format", "comfyui") == 0
    file = "nasa-tiny-1-lora.safetensors"
    assert list_files(out) == [file, "settings.json", "workflow_api.json"]
    assert (out / file).read_bytes() == (lora_student / models.COMFYUI_FILE).read_bytes()
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["kind"], settings["base_model"]) == ("lora", str(tiny_teacher))
    assert json.loads((out / "workflow_api.json").read_text())["2"]["inputs"]["lora_name"] == file


def test_a_student_that_comfyui_does_not_know_is_one_line(registry_uri, tmp_path, capsys):
    assert download(registry_uri, tmp_path / "out", "--format", "comfyui") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "format: got 'comfyui' for a student with unet.cross_attention_dim 16; expected 768, by which" in line
    assert not (tmp_path / "out").exists()
