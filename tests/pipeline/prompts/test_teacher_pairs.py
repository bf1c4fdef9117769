"""Pairs of the teacher: what is written is read, and what does not fit is refused."""

import pytest
import torch

from pipeline import models
from pipeline.errors import UserError
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.prompts import teacher_pairs
from pipeline.prompts.teacher_pairs import PAIRS_PER_FILE, TeacherPairs, list_pair_files
from pipeline.recipe.schema import Regression
from pipeline.shapes import WEIGHTS
from pipeline.storage import Folder

COUNT = PAIRS_PER_FILE + 3


@pytest.fixture
def folder(tmp_path):
    folder = Folder.from_uri(tmp_path)
    latents = torch.randn(COUNT, 4, 2, 3).half()
    for number, name in enumerate(list_pair_files(COUNT)):
        part = slice(number * PAIRS_PER_FILE, (number + 1) * PAIRS_PER_FILE)
        texts, seeds = [f"prompt {i}" for i in range(COUNT)][part], list(range(100, 100 + COUNT))[part]
        folder.write_table(name, TeacherPairs(texts, seeds, latents[part]).to_table())
    return folder, latents


def test_pairs_are_read_in_order_from_several_files(folder):
    written, latents = folder
    pairs = TeacherPairs.read(written, COUNT - 1)
    assert torch.equal(pairs.latents, latents[: COUNT - 1])
    assert (pairs.prompts[-1], pairs.seeds[-1]) == (f"prompt {COUNT - 2}", 100 + COUNT - 2)
    expected = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(100))
    assert torch.equal(pairs.get_noise([0])[0], expected)


def test_too_few_pairs_are_refused(folder):
    with pytest.raises(UserError, match=f"regression.num_pairs: got {COUNT + 1}; expected at most {COUNT}"):
        TeacherPairs.read(folder[0], COUNT + 1)


def test_pairs_of_another_noise_are_refused(folder, monkeypatch):
    monkeypatch.setattr(teacher_pairs, "draw_seeded_noise", lambda seeds, shape: torch.zeros(len(seeds), *shape))
    with pytest.raises(UserError, match="other noise"):
        TeacherPairs.read(folder[0], COUNT)


def test_each_image_of_each_step_has_its_own_row(folder):
    pairs = TeacherPairs.read(folder[0], COUNT)
    rows = {(step, index): pairs.draw_rows(7, step, [index])[0] for step in range(50) for index in range(8)}
    assert pairs.draw_rows(7, 3, range(8)) == [rows[3, index] for index in range(8)]
    assert len(set(rows.values())) > 0.6 * COUNT
    assert pairs.draw_rows(8, 3, range(8)) != pairs.draw_rows(7, 3, range(8))


def test_the_bundled_pairs_are_the_bundled_teachers():
    """Sampling two of them again gives the stored latents."""
    sampler, defaults = Sampler(models.load(WEIGHTS / "teacher")), Regression()
    sampling = SamplingMethod("steps", defaults.guidance_scale, defaults.teacher_steps)
    pairs = TeacherPairs.read(Folder.from_uri(WEIGHTS / "pairs"), 2048)
    again = sampler.sample_latents(sampling, pairs.prompts[:2], pairs.seeds[:2])
    torch.testing.assert_close(again, pairs.latents[:2].float(), atol=0.03, rtol=0.01)
