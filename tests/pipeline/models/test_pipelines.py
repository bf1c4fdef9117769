import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from nasa.steerable_denoiser import make_steerable
from nasa.student import generate
from nasa.testing import tiny_stable_diffusion
from nasa.testing.tiny_pipelines import TINY_PIPELINES, tiny_pixart, tiny_pixart_sigma
from pipeline import models
from pipeline.errors import UserError
from pipeline.shapes import WEIGHTS

ONE_STEP_TOLERANCE = 1e-4  # float32; x0 is of the order of 30


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "pixart", "pixart-sigma"])
def teacher(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / request.param
    if request.param in TINY_PIPELINES:
        pipe = TINY_PIPELINES[request.param]()
    else:
        pipe = tiny_stable_diffusion(prediction_type=request.param)
    pipe.save_pretrained(folder)
    return folder


def test_a_student_names_no_folder_of_the_machine_that_made_it(tiny_teacher, tmp_path):
    """A run that goes on in another session of Ray, whose copy of the teacher lies elsewhere, has the same student."""
    weights = models.load(tiny_teacher).denoiser.state_dict()
    moved = shutil.copytree(tiny_teacher, tmp_path / "moved")
    digests = {
        models.save_student(folder, weights, tmp_path / f"{n}") for n, folder in enumerate((tiny_teacher, moved))
    }
    assert len(digests) == 1
    assert not any(str(tiny_teacher) in file.read_text() for file in (tmp_path / "0").rglob("*.json"))


def test_the_saved_student_generates_in_one_step_with_an_ordinary_pipeline(teacher, tmp_path):
    model = models.load(teacher)
    weights = {name: value + 0.01 for name, value in model.denoiser.state_dict().items()}
    digest = models.save_student(teacher, weights, tmp_path / "student")
    assert models.save_student(teacher, weights, tmp_path / "again") == digest
    pipe = models.load_pipeline(tmp_path / "student")
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    prompts = ["a red star", "a ring"]
    call_options = {"use_resolution_binning": False} if teacher.name.startswith("pixart") else {}
    actual = pipe(
        prompts, num_inference_steps=1, guidance_scale=0, latents=noise, output_type="latent", **call_options
    ).images
    model.denoiser.load_state_dict(weights)
    with torch.no_grad():
        expected = generate(
            make_steerable(model.denoiser, family=model.family), model.diffusion, noise, model.encode(prompts)
        )
    torch.testing.assert_close(actual, expected, atol=ONE_STEP_TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_bundled_teacher_is_an_ordinary_pipeline():
    pipe = DiffusionPipeline.from_pretrained(WEIGHTS / "teacher", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in pipe.components.values() if isinstance(part, torch.nn.Module)} == {torch.float32}
    assert pipe("a photo of a star", num_inference_steps=1, output_type="pt").images.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build_pipeline", [tiny_stable_diffusion, tiny_pixart, tiny_pixart_sigma])
def test_the_student_of_a_half_precision_teacher_loads_without_options(build_pipeline, dtype, tmp_path):
    build_pipeline().to(dtype).save_pretrained(tmp_path / "teacher")
    weights = models.load(tmp_path / "teacher").denoiser.state_dict()
    models.save_student(tmp_path / "teacher", weights, tmp_path / "student")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "student", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    call_options = (
        {"use_resolution_binning": False, "clean_caption": False} if build_pipeline is not tiny_stable_diffusion else {}
    )
    image = pipe("a star", num_inference_steps=1, guidance_scale=0, output_type="pt", **call_options).images
    assert image.isfinite().all()


def test_loading_and_saving_print_nothing_and_restore_the_progress_bars(tiny_teacher, tmp_path, capfd):
    weights = models.load(tiny_teacher).denoiser.state_dict()
    models.save_student(tiny_teacher, weights, tmp_path / "student")
    assert capfd.readouterr().err == ""
    assert diffusers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled()


def test_other_weights_have_another_hash(tiny_teacher, tmp_path):
    weights = models.load(tiny_teacher).denoiser.state_dict()
    first = models.save_student(tiny_teacher, weights, tmp_path / "first")
    weights["conv_in.bias"] = weights["conv_in.bias"] + 1
    assert models.save_student(tiny_teacher, weights, tmp_path / "second") != first


def test_a_loaded_teacher_is_frozen_and_has_a_latent_shape(tiny_teacher):
    model = models.load(models.find_teacher_folder(str(tiny_teacher)))
    assert model.latent_shape == (4, 4, 4)
    assert not any(
        p.requires_grad for part in (model.denoiser, model.vae, model.pipe.text_encoder) for p in part.parameters()
    )
    assert not model.denoiser.training


def break_index(folder):
    (folder / "model_index.json").write_text("{")


def drop_part(folder):
    shutil.rmtree(folder / "vae")


def drop_part_from_index(folder):
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, 'expected a folder or hub id with a model_index.json, or "shapes"'),
        (lambda folder: (folder / "model_index.json").unlink(), "with a model_index.json"),
        (break_index, "model_index.json is not valid JSON"),
        (drop_part, "a complete pipeline; vae is missing"),
        (drop_part_from_index, "a complete pipeline; unet is missing"),
    ],
)
def test_a_folder_that_is_not_a_teacher_is_rejected(tiny_teacher, tmp_path, damage, message):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        models.find_teacher_folder(str(folder))
    assert str(caught.value).startswith("teacher: ")
    assert "\n" not in str(caught.value)


def test_corrupt_weights_are_reported(tiny_teacher, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="cannot be loaded: "):
        models.load(models.find_teacher_folder(str(folder)))
