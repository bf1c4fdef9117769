"""The `extract-lora` command, which turns a student whose weights are all trained into a LoRA of its teacher."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.__main__ import main
from nasa.lora import load_lora
from nasa.lora_extraction import extract_lora, list_lora_layers
from nasa.testing import TINY_PIPELINES
from pipeline import models
from pipeline.storage import Folder

IMAGE_TOLERANCE = 1e-4  # float32, on latents of the order of 30
DISTANCE = 0.05  # of the student's weights from the teacher's


@pytest.fixture(scope="module", params=["stable-diffusion", "pixart"])
def teacher(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / request.param
    TINY_PIPELINES[request.param]().save_pretrained(folder)
    return folder


def save_student(teacher, target, *, matrices_only=False):
    """Write a student whose weights, or only those that a LoRA holds, were moved at random."""
    denoiser = models.load_denoiser(teacher)
    moved = {f"{layer}.weight" for layer in list_lora_layers(denoiser)} if matrices_only else set(denoiser.state_dict())
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(value.shape, generator=generator) for name, value in denoiser.state_dict().items()}
    weights = {name: value + DISTANCE * noise[name] * (name in moved) for name, value in denoiser.state_dict().items()}
    models.save_student(teacher, weights, target)
    return target


def generate(pipe, student):
    pipe.scheduler = models.load_pipeline(student).scheduler
    options = {"use_resolution_binning": False} if hasattr(pipe, "transformer") else {}
    options |= {"num_inference_steps": 1, "guidance_scale": 0, "output_type": "latent"}
    return pipe(["a red star"], generator=torch.Generator().manual_seed(1), **options).images


@torch.no_grad()
def test_at_full_rank_the_teacher_with_the_lora_gives_the_student_s_images(teacher, tmp_path, capsys):
    student, out = save_student(teacher, tmp_path / "student", matrices_only=True), tmp_path / "lora"
    assert main(["extract-lora", str(student), str(teacher), "--rank", "9999", "--out", str(out)]) == 0
    pipe = models.load_pipeline(teacher)
    plain = generate(pipe, student)
    load_lora(pipe, load_file(out / models.LORA_FILE))
    expected = generate(models.load_pipeline(student), student)
    torch.testing.assert_close(generate(pipe, student), expected, atol=IMAGE_TOLERANCE, rtol=IMAGE_TOLERANCE)
    assert (plain - expected).abs().max() > 100 * IMAGE_TOLERANCE
    if hasattr(pipe, "load_lora_weights"):  # diffusers' own loader, which infers each layer's rank and lora_alpha
        theirs = models.load_pipeline(teacher)
        theirs.load_lora_weights(out)
        torch.testing.assert_close(generate(theirs, student), expected, atol=IMAGE_TOLERANCE, rtol=IMAGE_TOLERANCE)
    assert "share of the difference: 0\n" in capsys.readouterr().out


def test_the_folder_has_the_errors_and_the_student_s_scheduler(teacher, tmp_path, capsys):
    student, out = save_student(teacher, tmp_path / "student"), tmp_path / "lora"
    assert main(["extract-lora", str(student), str(teacher), "--rank", "2", "--out", str(out)]) == 0
    denoiser = models.load_denoiser(student)
    base = models.load_denoiser(teacher).state_dict()
    expected = extract_lora(denoiser.state_dict(), base, 2, list_lora_layers(denoiser))
    record = json.loads((out / "lora_extraction.json").read_text())
    assert record["relative_error"] == pytest.approx(expected.relative_error)
    assert record["omitted_share"] == pytest.approx(expected.omitted_share)
    assert record["total_relative_error"] == pytest.approx(expected.total_relative_error)
    assert 0.1 < record["relative_error"] < record["worst_error"] == max(record["layers"].values()) < 1
    assert record["layers"].keys() == set(list_lora_layers(denoiser))
    for name in ("scheduler/scheduler_config.json", "student.json"):
        assert (out / name).read_bytes() == (student / name).read_bytes()
    part = models.detect_family(teacher).denoiser_part
    files = {file.name for file in out.iterdir()}
    assert (models.COMFYUI_FILE in files) == (part == "unet")
    assert {name.partition(".")[0] for name in load_file(out / models.LORA_FILE)} == {part}
    printed = capsys.readouterr().out
    for value in (record["relative_error"], record["worst_error"], record["omitted_share"]):
        assert f"{value:.3g}" in printed
    assert record["worst_layer"] in printed


def test_a_lora_is_written_to_s3(tiny_teacher, tmp_path, bucket):
    student = save_student(tiny_teacher, tmp_path / "student")
    assert main(["extract-lora", str(student), str(tiny_teacher), "--rank", "1", "--out", f"{bucket}/lora"]) == 0
    assert Folder.from_uri(f"{bucket}/lora").exists(models.LORA_FILE)


def test_invalid_arguments_are_one_line_and_write_nothing(tiny_teacher, tmp_path, capsys):
    student, out = save_student(tiny_teacher, tmp_path / "student"), tmp_path / "lora"
    other = tmp_path / "pixart"
    TINY_PIPELINES["pixart"]().save_pretrained(other)
    broken = shutil.copytree(student, tmp_path / "broken")
    weights = load_file(broken / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, broken / "unet/diffusion_pytorch_model.safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept.txt").write_text("kept")
    for arguments, message in (
        ([student, tiny_teacher, "--rank", 0], "--rank: got 0; expected 1 or more."),
        ([student, tiny_teacher, "--out", tmp_path / "full"], "--out: got "),
        ([tmp_path, tiny_teacher], "student: got "),
        ([student, tmp_path], "teacher: got "),
        ([student, other], "expected the student's architecture, with "),
        ([tiny_teacher, tiny_teacher], "expected another one than the teacher: no layer differs."),
        ([broken, tiny_teacher], "student: conv_in.bias: got a difference of norm nan; expected a finite one."),
    ):
        capsys.readouterr()
        assert main(["extract-lora", *map(str, [*arguments[:2], "--out", out, *arguments[2:]])]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert message in line
        assert not out.exists()
    assert (tmp_path / "full/kept.txt").read_text() == "kept"
