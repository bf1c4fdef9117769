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


def test_previews_default_to_the_prompts_of_the_run(monkeypatch, tmp_path):
    run_prompts = ["a dog", "a cat", "a dog", "a tree", "a house", "a car"]
    monkeypatch.setattr(prompt_dataset, "read_first_prompts", lambda folder: run_prompts)
    own_teacher = parse("", ['teacher="mine"'])
    assert previews.choose_preview_prompts(own_teacher, tmp_path) == ("a dog", "a cat", "a tree", "a house")
    own_previews = parse("", ['teacher="mine"', 'evaluation.preview_prompts=["a boat"]'])
    assert previews.choose_preview_prompts(own_previews, tmp_path) == ("a boat",)
    shapes = parse("")
    assert previews.choose_preview_prompts(shapes, tmp_path) == tuple(
        build_suite(shapes).choose_preview_prompts(tmp_path)
    )


def test_preview_texts_include_the_empty_prompt_first():
    assert previews.list_preview_texts(["a dog", "low quality"]) == ("", "low quality", "a dog")


def test_each_prompt_has_its_own_key_and_sheet():
    options = parse("", ["train.num_workers=1", "train.batch_size=2"])
    model = models.load(models.find_teacher_folder("shapes"))
    built = engines.build_engines(options, model, torch.device("cpu"), make=engines.PlainEngine)
    distiller = Distiller(options, model, built, NegativeSampler(["ugly"], np.array([1.0]), False), None)
    state = torch.get_rng_state()
    images = dict(previews.draw_previews(distiller, ["a photo of a ring", "a photo of a star"]))
    assert list(images) == ["preview_00_a-photo-of-a-ring", "preview_01_a-photo-of-a-star"]
    first, second = images.values()
    assert first.size == second.size
    assert first.tobytes() != second.tobytes()
    assert torch.equal(torch.get_rng_state(), state), "previews leave the training's random state alone"
    assert not dict(previews.draw_previews(distiller, []))
