"""The twin of the toy teacher that predicts the noise."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import convergence, epsilon_twin
from benchmarks.toy_students import build_distiller
from nasa.parameterization import to_eps
from pipeline import models, recipe
from pipeline.prompts.teacher_pairs import TeacherPairs


@pytest.fixture(scope="module")
def teacher():
    return models.load(models.find_teacher_folder(recipe.BUNDLED))


@pytest.fixture
def few_pairs(monkeypatch):
    """Keep two of the pairs, since their prompts are encoded."""
    all_pairs = TeacherPairs.read

    def read(folder, count):
        pairs = all_pairs(folder, 256)
        return TeacherPairs(pairs.prompts[:2], pairs.seeds[:2], pairs.latents[:2], pairs.uri)

    monkeypatch.setattr(TeacherPairs, "read", staticmethod(read))


class ExactTwin(nn.Module):
    """Predicts the noise by converting the teacher's v."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = [teacher]

    def forward(self, x_t, timestep, embeds):
        (teacher,) = self.teacher
        alpha, sigma = teacher.diffusion.alpha_sigma(timestep, x_t)
        output = teacher.denoiser(x_t, timestep, embeds).sample
        return SimpleNamespace(sample=to_eps(output, x_t, alpha, sigma, "v_prediction"))


@torch.no_grad()
def test_the_loss_is_zero_for_the_teacher_s_own_noise_alone(teacher, few_pairs):
    batch = epsilon_twin.build_batches(teacher)(3)
    assert epsilon_twin.compute_loss(ExactTwin(teacher), teacher, batch) < 1e-10
    assert epsilon_twin.compute_loss(teacher.denoiser, teacher, batch) > 0.01


def test_a_twin_is_a_teacher_that_can_be_distilled(few_pairs, tmp_path):
    epsilon_twin.make_twin(tmp_path, 1)
    levers = epsilon_twin.build_levers(tmp_path / "teacher")
    assert len(levers) == 2 * len(convergence.LEVERS)
    overrides = levers["epsilon from timestep 749: VSD alone"]
    distiller = build_distiller(recipe.load("shapes", ["train.num_workers=1", *overrides]))
    assert distiller.model.diffusion.prediction_type == "epsilon"
    assert distiller.model.diffusion.student_timesteps[0] == 749


def test_the_rows_of_the_teacher_are_those_of_the_same_levers(monkeypatch, tmp_path):
    monkeypatch.setattr(convergence, "DATA", tmp_path / "rows.json")
    wanted = {"lever": "VSD alone", "overrides": convergence.LEVERS["VSD alone"], "seed": 1, "seconds": 60.0}
    others = [{**wanted, "seed": 2}, {**wanted, "seconds": 30.0}, {**wanted, "overrides": []}, {**wanted, "lever": "x"}]
    convergence.DATA.write_text(json.dumps([wanted, *others]))
    assert epsilon_twin.read_rows_of_teacher(2, 60.0) == [{**wanted, "lever": "v: VSD alone"}]
