"""A registered LoRA student: its adapter is in the version, and the model card's code and MLflow's flavor load it."""

import re
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from jobs.__main__ import main
from nasa.testing import TINY_PIPELINES
from pipeline import models
from pipeline.recipe import BUNDLED, parse
from pipeline.registry import register
from pipeline.registry.lora_use import describe_lora
from pipeline.storage import Folder
from pipeline.training.engines import add_student_lora
from pipeline.training.student_export import export

PIXEL_TOLERANCE = 1  # of 255
LORA = ["student.lora_rank=2", "student.lora_alpha=8"]
FENCE = re.compile(r"^As a LoRA: .*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(params=["stable-diffusion", "pixart"])
def registered(request, candidate, uri, tmp_path):
    """Register a LoRA student with random adapters; return the teacher's folder and the downloaded version."""
    teacher = tmp_path / "teacher"
    TINY_PIPELINES[request.param]().save_pretrained(teacher)
    recipe = parse("", ['name="tiny"', f"teacher={str(teacher)!r}", *LORA])
    denoiser = models.load_denoiser(teacher)
    add_student_lora(recipe, denoiser)
    torch.manual_seed(0)
    adapters = {name: 0.3 * torch.randn_like(v) for name, v in denoiser.state_dict().items() if "lora_" in name}
    save_file(adapters, tmp_path / "adapters.safetensors")
    student = Folder.from_uri(tmp_path / "student")
    sha256 = export(recipe, teacher, "", tmp_path / "adapters.safetensors", student)
    register.register(replace(candidate(0), student=student, student_sha256=sha256, recipe=recipe), uri)
    out = tmp_path / "down"
    assert main(["models", "download", "--name", "nasa-tiny", "--out", str(out), "--tracking-uri", uri]) == 0
    (root,) = (file.parent for file in out.rglob("MLmodel"))
    mlflow.set_tracking_uri(uri)
    return teacher, root


def sample_pixels(pipe, options):
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo", generator=torch.Generator().manual_seed(0), **options).images[0]
    return np.asarray(image, dtype=float)


def list_call_options(teacher):
    return {"num_inference_steps": 1, "guidance_scale": 0.0} | (
        {"use_resolution_binning": False} if (teacher / "transformer").is_dir() else {}
    )


def run_card(card, root):
    """Run the model card's code for the adapter; return the pipeline that it makes."""
    (code,) = FENCE.findall(card)
    names = {"folder": str(root)}
    exec(code, names)
    return names["pipe"]


def test_the_version_holds_the_adapter_and_the_card_s_code_makes_the_student_of_it(registered):
    teacher, root = registered
    assert (root / "student" / models.LORA_FILE).is_file()
    pipe = run_card((root / "README.md").read_text(), root)
    options = list_call_options(teacher)
    merged = sample_pixels(DiffusionPipeline.from_pretrained(root / "student"), options)
    assert np.abs(sample_pixels(pipe, options) - merged).max() <= PIXEL_TOLERANCE
    plain = DiffusionPipeline.from_pretrained(teacher)
    plain.scheduler = pipe.scheduler
    assert np.abs(sample_pixels(plain, options) - merged).max() > 10 * PIXEL_TOLERANCE


def test_mlflow_s_own_flavor_loads_the_adapter_where_diffusers_can(registered):
    teacher, root = registered
    flavors = mlflow.models.get_model_info("models:/nasa-tiny@champion").flavors
    assert "python_function" in flavors
    if (teacher / "transformer").is_dir():  # PixArt, for which diffusers has no loader
        assert "diffusers" not in flavors
        return
    loaded = mlflow.diffusers.load_model("models:/nasa-tiny@champion")
    assert (loaded.base_model, loaded.adapter_type) == (str(teacher), "lora")
    pipe = loaded.load_pipeline(device="cpu", torch_dtype=torch.float32)
    pipe.scheduler = DiffusionPipeline.from_pretrained(root / "student").scheduler
    options = list_call_options(teacher)
    merged = sample_pixels(DiffusionPipeline.from_pretrained(root / "student"), options)
    assert np.abs(sample_pixels(pipe, options) - merged).max() <= PIXEL_TOLERANCE


def test_a_version_without_an_adapter_has_neither(uri, candidate, tmp_path):
    register.register(candidate(0), uri)
    mlflow.set_tracking_uri(uri)
    root = Path(mlflow.artifacts.download_artifacts("models:/nasa-tiny/1", dst_path=str(tmp_path / "down")))
    assert "LoRA" not in (root / "README.md").read_text()
    assert list(mlflow.models.get_model_info("models:/nasa-tiny/1").flavors) == ["python_function"]


@pytest.mark.parametrize(
    ("overrides", "base", "revision"),
    [
        (['teacher="shapes"'], "pipeline/shapes/weights/teacher", ""),
        (['teacher="someone/model"'], "someone/model", ""),
        (['teacher="someone/model"', 'revision="v1"'], "someone/model", "v1"),
        (['teacher="someone/model"', 'revision="v1"', 'student.init="someone/other"'], "someone/other", ""),
        (['teacher="shapes"', 'student.init="runs/a/student"'], "runs/a/student", ""),
    ],
)
def test_the_base_is_what_the_student_started_from(tmp_path, overrides, base, revision):
    (tmp_path / models.LORA_FILE).touch()
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}'
    )
    use = describe_lora(parse("", overrides), tmp_path)
    assert (use.base, use.revision, use.scheduler, use.has_loader) == (base, revision, "DDIMScheduler", True)
    assert Path(base).is_dir() == (overrides == [f'teacher="{BUNDLED}"'])


def test_the_requirements_name_all_that_nasa_imports():
    """The library lies beside the version, and is no package that brings its own requirements."""
    assert "peft" in {line.partition("==")[0] for line in register.version_artifacts.list_pip_requirements()}
