"""A LoRA student's adapter: with its teacher it is the merged student, in diffusers and by ComfyUI's rules."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nasa.lora import get_lora_parameters, load_lora
from nasa.testing import TINY_PIPELINES
from pipeline import models, recipe
from pipeline.hashing import hash_folder
from pipeline.storage import Folder
from pipeline.training.engines import add_student_lora
from pipeline.training.student_export import export

IMAGE_TOLERANCE = 1e-4  # float32; W + B A in one product or two, on latents of the order of 30
RANK, ALPHA = 3, 8  # lora_alpha / rank is no power of two
OPTIONS = {
    "stable-diffusion": {},
    "pixart": {"use_resolution_binning": False},
    "pixart-sigma": {"use_resolution_binning": False},
}


@pytest.fixture(scope="module", params=OPTIONS)
def teacher(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / request.param
    TINY_PIPELINES[request.param]().save_pretrained(folder)
    return folder


def export_lora_student(teacher, target, rank=RANK, init=""):
    """Export a student with random adapters; return its folder and hash."""
    options = recipe.parse("", [f"student.lora_rank={rank}", f"student.lora_alpha={ALPHA}"])
    denoiser = models.load_denoiser(Path(init or teacher))
    add_student_lora(options, denoiser)
    trained = {name: value for name, value in denoiser.state_dict().items() if "lora_" in name}
    generator = torch.Generator().manual_seed(0)
    trained = {name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in trained.items()}
    assert len(trained) == len(get_lora_parameters(denoiser))
    save_file(trained or denoiser.state_dict(), target.parent / f"{target.name}.safetensors")
    weights = target.parent / f"{target.name}.safetensors"
    return target, export(options, teacher, str(init), weights, Folder.from_uri(target))


def generate(pipe, student, **options):
    pipe.scheduler = models.load_pipeline(student).scheduler
    generator = torch.Generator().manual_seed(1)
    options |= {"num_inference_steps": 1, "guidance_scale": 0, "output_type": "latent"}
    return pipe(["a red star", "a ring"], generator=generator, **options).images


def load_adapter(pipe, student):
    """Load the adapter by the pipeline's own loader; PixArt's pipelines and transformer have none."""
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(student)
    else:
        assert not hasattr(pipe.transformer, "load_lora_adapter")
        load_lora(pipe, load_file(student / models.LORA_FILE))


def test_the_teacher_with_the_adapter_gives_the_images_of_the_merged_student(teacher, tmp_path):
    check_adapter(teacher, tmp_path / "student", OPTIONS[teacher.name])


def test_the_loader_of_z_image_reads_the_adapter(tmp_path):
    """No test says how ComfyUI names this transformer's layers."""
    TINY_PIPELINES["z-image"]().save_pretrained(tmp_path / "teacher")
    check_adapter(tmp_path / "teacher", tmp_path / "student", {"height": 32, "width": 32})


@torch.no_grad()
def check_adapter(teacher, folder, options):
    """Compare the images of the merged student and of the teacher with the student's adapter."""
    student, _ = export_lora_student(teacher, folder)
    merged, pipe = models.load_pipeline(student), models.load_pipeline(teacher)
    plain = generate(pipe, student, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # peft's, where the file and its own config disagree
        load_adapter(pipe, student)
    expected = generate(merged, student, **options)
    torch.testing.assert_close(generate(pipe, student, **options), expected, atol=IMAGE_TOLERANCE, rtol=IMAGE_TOLERANCE)
    assert (plain - expected).abs().max() > 1e3 * IMAGE_TOLERANCE


@torch.no_grad()
def test_our_loader_equals_the_one_of_diffusers(tiny_teacher, tmp_path):
    student, _ = export_lora_student(tiny_teacher, tmp_path / "student")
    ours, theirs = models.load_pipeline(tiny_teacher), models.load_pipeline(tiny_teacher)
    load_lora(ours, load_file(student / models.LORA_FILE))
    theirs.load_lora_weights(student)
    torch.testing.assert_close(generate(ours, student), generate(theirs, student), atol=0, rtol=0)


def test_weights_of_no_part_of_the_pipeline_are_rejected(tiny_teacher):
    pipe = models.load_pipeline(tiny_teacher)
    with pytest.raises(ValueError, match=r"weights: got names such as 'transformer\.x"):
        load_lora(pipe, {"transformer.x.lora_A.weight": torch.zeros(2, 3)})
    mixed = {"unet.conv_in.lora_A.weight": torch.zeros(2, 3), "text_encoder.x.lora_A.weight": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="expected all of one part of the pipeline"):
        load_lora(pipe, mixed)
    with pytest.raises(ValueError, match="weights: got names such as ''"):
        load_lora(pipe, {})


def test_the_adapter_is_of_the_denoiser_that_the_student_started_from(tiny_teacher, tmp_path):
    weights = models.load(tiny_teacher).denoiser.state_dict()
    moved = weights | {"conv_in.bias": weights["conv_in.bias"] + 1}
    models.save_student(tiny_teacher, moved, tmp_path / "init")
    student, _ = export_lora_student(tiny_teacher, tmp_path / "student", init=tmp_path / "init")
    pipe = models.load_pipeline(tmp_path / "init")
    load_adapter(pipe, student)
    expected = generate(models.load_pipeline(student), student)
    torch.testing.assert_close(generate(pipe, student), expected, atol=IMAGE_TOLERANCE, rtol=IMAGE_TOLERANCE)


def test_two_exports_of_a_checkpoint_are_the_same_files(teacher, tmp_path):
    """A retried export must have the hash that the manifest has."""
    hashes = {export_lora_student(teacher, tmp_path / str(number))[1] for number in range(6)}
    assert hashes == {hash_folder(tmp_path / "0")}


def test_a_student_whose_weights_are_all_trained_has_no_adapter(tiny_teacher, tmp_path):
    student, sha256 = export_lora_student(tiny_teacher, tmp_path / "student", rank=0)
    assert sha256 == hash_folder(student)
    assert not list(student.glob("*.safetensors"))


def test_the_names_are_those_of_diffusers(teacher, tmp_path):
    student, _ = export_lora_student(teacher, tmp_path / "student")
    part = models.detect_family(teacher).denoiser_part
    with safe_open(student / models.LORA_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    layers = {name.removeprefix(f"{part}.").rpartition(".lora_")[0] for name in names}
    denoiser = models.load_denoiser(teacher)
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    assert layers == {name for name, _ in denoiser.named_modules() if name.endswith(targets)}
    assert names == {f"{part}.{layer}.lora_{matrix}.weight" for layer in layers for matrix in "AB"}


# ComfyUI, in our words; `lora.py` maps a layer's name to its own weight, `weight_adapter/lora.py` reads the matrices:
# https://github.com/Comfy-Org/ComfyUI/blob/17358c8f73b581a0d22facc3c385822f09b8bfb1/comfy/lora.py
# https://github.com/Comfy-Org/ComfyUI/blob/6f98b150e065f1ffc788558574a887835068bd40/comfy/weight_adapter/lora.py
# https://github.com/Comfy-Org/ComfyUI/blob/09708eae709a992a5684bed3595ce4d07e705b4e/comfy/utils.py
COMFYUI_SUFFIXES = (  # up and down matrix; the first pair that the file has counts
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
)


def list_comfyui_names(part, layer):
    """Return the names under which ComfyUI looks for a layer of diffusers' UNet or PixArt's transformer."""
    if part == "transformer":
        return {f"transformer.{layer}", f"base_model.model.{layer}", f"unet.base_model.model.{layer}"}
    underscored = layer.replace(".", "_")
    old_processor = layer.replace(".to_", ".processor.to_")  # of diffusers before peft
    if old_processor.endswith(".to_out.0"):
        old_processor = old_processor.removesuffix(".0")
    return {f"lora_unet_{underscored}", f"lycoris_{underscored}", old_processor, f"unet.{old_processor}"}


def read_as_comfyui(file, part, denoiser):
    """Return the weights' changes that ComfyUI reads from a file, and the names that it leaves out with a warning."""
    tensors = load_file(file)
    unread, changes = set(tensors), {}
    for layer, module in denoiser.named_modules():
        for name in list_comfyui_names(part, layer) if hasattr(module, "weight") else ():
            for up, down in COMFYUI_SUFFIXES:
                if name + up in tensors:
                    alpha = tensors.get(f"{name}.alpha")
                    scale = 1.0 if alpha is None else alpha.item() / len(tensors[name + down])
                    change = scale * tensors[name + up].flatten(1) @ tensors[name + down].flatten(1)
                    changes[f"{layer}.weight"] = change.reshape(module.weight.shape)
                    unread -= {name + up, name + down, f"{name}.alpha"}
    return changes, unread


def test_comfyui_reads_all_of_the_merged_student_s_changes(teacher, tmp_path):
    student, _ = export_lora_student(teacher, tmp_path / "student")
    part = models.detect_family(teacher).denoiser_part
    base, merged = models.load_denoiser(teacher), models.load_denoiser(student).state_dict()
    file = student / (models.COMFYUI_FILE if part == "unet" else models.LORA_FILE)
    changes, unread = read_as_comfyui(file, part, base)
    assert unread == set()
    for name, value in base.state_dict().items():
        torch.testing.assert_close(value + changes.get(name, 0), merged[name], atol=1e-5, rtol=1e-5)
        assert (name in changes) == (not torch.equal(value, merged[name]))


def test_comfyui_does_not_read_the_names_of_diffusers_of_a_unet(tiny_teacher, tmp_path):
    """It is why a UNet's adapter has a second file."""
    student, _ = export_lora_student(tiny_teacher, tmp_path / "student")
    changes, unread = read_as_comfyui(student / models.LORA_FILE, "unet", models.load_denoiser(tiny_teacher))
    assert changes == {}
    assert unread == set(load_file(student / models.LORA_FILE))


def test_the_index_of_the_pipeline_does_not_name_the_adapter(tiny_teacher, tmp_path):
    student, _ = export_lora_student(tiny_teacher, tmp_path / "student")
    assert not any("lora" in str(entry) for entry in json.loads((student / "model_index.json").read_text()).items())
