"""The flow-matching toy teachers: what they are trained on, and that they can be distilled."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import flow_students, flow_teachers
from benchmarks.toy_students import build_distiller
from datasets_prep.shapes.prompts import sample_prompts
from nasa.parameterization import add_noise
from nasa.prompt_embeds import tokenize
from pipeline import models, recipe
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.prompts.teacher_pairs import TeacherPairs
from pipeline.storage import Folder

TEXTS = ["a photo of a red star", ""]
EXACT = 1e-4


@pytest.fixture(scope="module")
def bundled():
    return models.load(models.find_teacher_folder(recipe.BUNDLED))


@pytest.fixture(scope="module", params=sorted(flow_teachers.BUILDERS))
def folder(request, tmp_path_factory):
    work = tmp_path_factory.mktemp("flow")
    return flow_teachers.make_teacher(work, request.param, steps=1, scenes=1, compiles=False)


def draw_images(bundled):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(len(TEXTS), *bundled.latent_shape, generator=generator) for _ in range(2)]


def test_the_target_is_the_velocity_of_the_teacher_s_image_and_noise(bundled):
    """A teacher that knows image and noise gives `eps - x0`; the real one's image and noise mix to its input."""
    (x0, eps), s = draw_images(bundled), torch.tensor([0.3, 0.8])
    velocity = flow_teachers.predict_velocity(build_exact_teacher(bundled, x0, eps), x0, eps, s, TEXTS)
    torch.testing.assert_close(velocity, eps - x0, atol=EXACT, rtol=EXACT)


def build_exact_teacher(bundled, x0, eps):
    """Return a teacher of v that knows image and noise."""

    def predict(x_t, timestep, embeds):
        alpha, sigma = bundled.diffusion.alpha_sigma(timestep, x_t)
        return SimpleNamespace(sample=alpha * eps - sigma * x0)

    return SimpleNamespace(
        diffusion=bundled.diffusion, denoiser=predict, encode=lambda texts: bundled.encode(texts), pipe=bundled.pipe
    )


def test_the_loss_is_zero_for_the_velocity_at_the_noised_image_alone(bundled, folder):
    model, (x0, eps) = models.load(folder), draw_images(bundled)
    captions = tokenize(bundled.pipe.tokenizer, TEXTS)
    batch = {"captions": captions, "x0": x0, "eps": eps, "level": torch.tensor([300, 900])}
    called = []

    class Denoiser(torch.nn.Module):
        config = model.denoiser.config

        def __init__(self, velocity):
            super().__init__()
            self.velocity = velocity

        def forward(self, hidden_states, **_):
            called.append(hidden_states)
            return (self.velocity,)

    exact = build_exact_teacher(bundled, x0, eps)
    right, wrong = (
        flow_teachers.compute_loss(Denoiser(velocity), model, exact, batch) for velocity in (eps - x0, x0 - eps)
    )
    assert right < 1e-8 < 1 < wrong
    s = model.diffusion.sigmas[batch["level"]].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(called[0], (1 - s) * x0 + s * eps, atol=EXACT, rtol=EXACT)


def test_the_bundled_teacher_is_called_at_the_same_ratio_of_noise_to_image(bundled):
    called = []

    def remember(x_t, timestep, embeds):
        called.append((x_t, timestep))
        return SimpleNamespace(sample=torch.zeros_like(x_t))

    spy = SimpleNamespace(diffusion=bundled.diffusion, denoiser=remember, encode=lambda texts: bundled.encode(texts))
    (x0, eps), s = draw_images(bundled), torch.tensor([0.25, 0.75])
    flow_teachers.predict_velocity(spy, x0, eps, s, TEXTS)
    ((x_t, timestep),) = called
    alpha, sigma = bundled.diffusion.alpha_sigma(timestep, x0)
    torch.testing.assert_close((sigma / (alpha + sigma)).flatten(), s, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        x_t / (alpha + sigma), add_noise(x0, eps, 1 - s[:, None, None, None], s[:, None, None, None]), atol=0.01, rtol=0
    )


def test_a_teacher_can_be_sampled_and_distilled(folder, tmp_path):
    flow_students.make_pairs(folder, ["regression.num_pairs=2", "regression.teacher_steps=1"])
    pairs = TeacherPairs.read(Folder.from_uri(str(flow_students.get_pairs_folder(folder))), 2)
    assert pairs.prompts == list(sample_prompts(2, 0))
    sampler = Sampler(models.load(folder))
    expected = sampler.sample_latents(SamplingMethod("steps", 3.0, 1), pairs.prompts, pairs.seeds)
    torch.testing.assert_close(pairs.latents.float(), expected, atol=0.02, rtol=0.01)
    small = ["train.batch_size=2", "regression.images=2", "regression.num_pairs=2", "train.clip_weight=0"]
    levers = flow_students.build_levers(folder) | flow_students.build_settings(folder)
    for name in (f"{folder.name}: SBv2*, 4 steps", f"{folder.name}, no regression"):
        options = recipe.load("shapes", ["train.num_workers=1", *levers[name], *small])
        distiller = build_distiller(options)
        assert distiller.model.diffusion.prediction_type == "flow"
        metrics = distiller.step(0, ["a photo of a red star", "a photo of a blue ring"])
        assert metrics["gradient_norm_student"] > 0, name
        assert ("loss_regression" in metrics) is ("no regression" not in name)
    assert len(set(map(str, levers.values()))) == 11  # the losses that the students use are one of the settings


def test_the_table_has_medians_over_seeds():
    def build_row(right, removed):
        shares = [{"scale": scale, "removed": removed + scale / 10, "kept": 1.0} for scale in flow_students.SCALES]
        diversity = {"shape": 0.5, "colour": 0.6, "background": right}
        return {
            "lever": "sana: NASA-T, 1 step",
            "right": right,
            "clean": 1,
            "exclusion": shares,
            "diversity": diversity,
        }

    rows = [build_row(0.5, 0.2), build_row(0.9, 0.3), build_row(0.7, 0.4)]
    (*_, line) = flow_students.format_table(rows).splitlines()
    shares = "70 (50 to 90) | 100 (100 to 100) | 32, 35, 40 | 100, 100, 100"
    assert line == f"| sana: NASA-T, 1 step | 3 | {shares} | 0.50, 0.60, 0.70 |"
    assert flow_students.get_measure(rows[0], "removed") == pytest.approx(25)
    assert flow_students.get_measure(rows[0], "diversity") == 50
