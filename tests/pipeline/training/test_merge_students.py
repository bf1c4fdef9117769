"""The `merge` command, which averages two students."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.__main__ import main

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def other(tiny_teacher, tmp_path):
    """Return the tiny teacher with every weight of its denoiser increased by one."""
    import shutil

    folder = shutil.copytree(tiny_teacher, tmp_path / "other")
    save_file({name: value + 1 for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_merged_student_is_the_weighted_mean(tiny_teacher, other, tmp_path, weight, capsys):
    out = tmp_path / "merged"
    assert main(["merge-students", str(tiny_teacher), str(other), "--weight", str(weight), "--out", str(out)]) == 0
    first, merged = load_file(tiny_teacher / WEIGHTS), load_file(out / WEIGHTS)
    assert merged.keys() == first.keys()
    for name, value in merged.items():
        torch.testing.assert_close(value, first[name] + weight)
    assert str(out) in capsys.readouterr().out


def test_invalid_arguments_are_reported_and_write_nothing(tiny_teacher, other, tmp_path, capsys):
    weights = load_file(other / WEIGHTS)
    out = tmp_path / "merged"
    for arguments, message in (
        ([tiny_teacher, other, "--weight", "1.5"], "--weight: got 1.5; expected 0 to 1"),
        ([tiny_teacher, tmp_path], "second: "),
        ([tiny_teacher, other, "--out", str(other)], "expected a folder without a model"),
    ):
        assert main(["merge-students", *map(str, [*arguments[:2], "--out", out, *arguments[2:]])]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    assert all(torch.equal(value, weights[name]) for name, value in load_file(other / WEIGHTS).items())


@pytest.mark.parametrize(
    ("part", "changed", "message"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "scheduler.prediction_type = 'v_pred"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.5}, "scheduler.beta_end = 0.5"),
        ("student.json", {"start_timestep": 400}, "start_timestep = 400"),
        ("vae/config.json", {"scaling_factor": 0.5}, "vae.scaling_factor = 0.5"),
        ("text_encoder/config.json", {"hidden_size": 8}, "text_encoder.hidden_size = 8"),
    ],
)
def test_students_with_different_configurations_are_rejected(
    tiny_teacher, other, tmp_path, capsys, part, changed, message
):
    """Their weights have the same names and shapes, so that merging them would succeed silently."""
    file = other / part
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | changed))
    out = tmp_path / "merged"
    assert main(["merge-students", str(tiny_teacher), str(other), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "; the first has " in error
    assert not out.exists()
