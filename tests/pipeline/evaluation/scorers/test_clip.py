"""CLIP+ and CLIP-, compared with cosines of open_clip 3.3.0 recorded by tests/data/scorers/make_clip.py."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scorer_material import PROMPTS, SIZES, make_image

from pipeline.errors import UserError
from pipeline.evaluation import scorers
from pipeline.evaluation.scorers import Metric
from pipeline.models.clip.loss_model import Clip
from pipeline.recipe import BUNDLED
from pipeline.shapes import WEIGHTS

RECORDED = json.loads((Path(__file__).parents[3] / "data" / "scorers" / "clip.json").read_text())
TOLERANCE = 1e-6  # tolerance of a cosine


@pytest.mark.parametrize("architecture", RECORDED)
def test_cosines_equal_those_of_open_clip(checkpoint, architecture):
    rows = RECORDED[architecture]["scores"]
    metric = Metric(
        kind="clip", weights=checkpoint(RECORDED[architecture]["config"]), architecture=architecture, batch_size=3
    )
    scorers.check(metric)
    scorer, images = scorers.load(metric), [make_image(name) for name in SIZES]
    for name, prompt in PROMPTS.items():
        expected = [row["cosine"] for row in rows if row["prompt"] == name]
        assert np.std(expected) > 1000 * TOLERANCE
        scores = scorer(images, [prompt] * len(images), [None, *[prompt] * (len(images) - 1)])
        assert scores["clip_positive"] == pytest.approx(expected, abs=TOLERANCE, rel=0)
        assert scores["clip_negative"][1:] == scores["clip_positive"][1:]
        assert math.isnan(scores["clip_negative"][0])


def test_the_default_is_vit_g_14_with_the_paper_s_prefix(checkpoint):
    file = checkpoint(RECORDED["ViT-g-14"]["config"])
    options = scorers.load(Metric(kind="clip", weights=file)).options
    assert options["architecture"] == "ViT-g-14"
    assert options["prefix"] == "A photo depicts "


def test_a_folder_in_transformers_layout_is_scored_with_its_own_tokenizer():
    prompts, images = ["a red circle", "a blue square"], [make_image("exact"), make_image("grey")]
    metric = Metric(kind="clip", weights=str(WEIGHTS / "clip"), prefix="")
    scorers.check(metric)
    scorer = scorers.load(metric)
    scores = scorer(images, prompts, prompts[::-1])
    assert scorer.options["architecture"] == "config.json"
    texts = Clip.load(BUNDLED).encode_texts(prompts)
    texts = (texts / texts.norm(dim=-1, keepdim=True)).numpy()
    assert np.allclose(scorer.features.encode_texts(prompts).numpy(), texts, atol=1e-6)
    assert not np.allclose(scores["clip_positive"], scores["clip_negative"], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "expected a tokenizer"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            "expected a model of type 'clip', not 'bert'",
        ),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace('"hidden_size": 96', '"hidden_size": 32')
            ),
            "has another shape of ",
        ),
    ],
    ids=["tokenizer", "type", "shape"],
)
def test_an_invalid_folder_is_reported(tmp_path, change, message):
    folder = shutil.copytree(WEIGHTS / "clip", tmp_path / "clip")
    change(folder)
    with pytest.raises(UserError, match=f"^evaluation.metrics.weights: .*{message}"):
        scorers.check(Metric(kind="clip", weights=str(folder)))
