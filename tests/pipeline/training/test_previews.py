"""Preview images of a training run."""

import numpy as np
import torch

from pipeline import models
from pipeline.evaluation.suites import build_suite
from pipeline.prompts import prompt_dataset
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.recipe import parse
from pipeline.training import engines, previews
from pipeline.training.distiller import Distiller


def test_previews_show_the_run_s_own_prompts_unless_the_recipe_names_others(monkeypatch, tmp_path):
    own = ["a dog", "a cat", "a dog", "a tree", "a house", "a car"]
    monkeypatch.setattr(prompt_dataset, "read_first_prompts", lambda folder: own)
    mine = parse("", ['teacher="mine"'])
    assert previews.choose_preview_prompts(mine, tmp_path) == ("a dog", "a cat", "a tree", "a house")
    named = parse("", ['teacher="mine"', 'evaluation.preview_prompts=["a boat"]'])
    assert previews.choose_preview_prompts(named, tmp_path) == ("a boat",)
    toy = parse("")
    assert previews.choose_preview_prompts(toy, tmp_path) == tuple(build_suite(toy).preview_prompts(tmp_path))


def test_a_worker_without_a_text_encoder_is_given_every_text_once():
    assert previews.list_preview_texts(["a dog", "low quality"]) == ("", "low quality", "a dog")


def test_each_prompt_has_a_key_and_a_sheet_of_its_own():
    options = parse("", ["train.num_workers=1", "train.batch_size=2"])
    model = models.load(models.find_teacher_folder("shapes"))
    built = engines.build(options, model, torch.device("cpu"), make=engines.PlainEngine)
    distiller = Distiller(options, model, built, NegativeSampler(["ugly"], np.array([1.0]), False), None)
    state = torch.get_rng_state()
    drawn = dict(previews.draw_previews(distiller, ["a photo of a ring", "a photo of a star"]))
    assert list(drawn) == ["preview_00_a-photo-of-a-ring", "preview_01_a-photo-of-a-star"]
    first, second = drawn.values()
    assert first.size == second.size
    assert first.tobytes() != second.tobytes()
    assert torch.equal(torch.get_rng_state(), state), "previews draw no number of the training's"
    assert not dict(previews.draw_previews(distiller, []))
