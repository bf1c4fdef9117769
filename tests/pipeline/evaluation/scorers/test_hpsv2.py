"""HPSv2, compared with scores of hpsv2x 1.2.0 recorded by tests/data/scorers/make_hpsv2.py."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scorer_material import PROMPTS, build_clip_layout, make_image, save_checkpoint

from pipeline.errors import UserError
from pipeline.evaluation import scorers
from pipeline.evaluation.scorers import Metric, hpsv2

DATA = Path(__file__).parents[3] / "data" / "scorers"
SMALL = json.loads((DATA / "hpsv2.json").read_text())
TOLERANCE = 1e-4  # tolerance of a score in the benchmark's scale


def assert_scores_match(recorded, file):
    """Compare the scores of all rows of each setting, in batches that do not divide their number."""
    for setting in dict.fromkeys((row["antialias"], row["jpeg_quality"]) for row in recorded["scores"]):
        rows = [row for row in recorded["scores"] if (row["antialias"], row["jpeg_quality"]) == setting]
        metric = Metric(kind="hpsv2", weights=file, antialias=setting[0], jpeg_quality=setting[1], batch_size=5)
        scorers.check(metric)
        images, prompts = [make_image(row["image"]) for row in rows], [PROMPTS[row["prompt"]] for row in rows]
        scores = scorers.load(metric)(images, prompts, [None] * len(rows))["hpsv2"]
        assert scores == pytest.approx([row["score"] for row in rows], abs=TOLERANCE, rel=0)


def test_scores_are_those_of_the_authors_code(checkpoint):
    assert np.std([row["score"] for row in SMALL["scores"]]) > 100 * TOLERANCE
    assert_scores_match(SMALL, checkpoint(SMALL["config"]))


@pytest.mark.slow
def test_scores_are_those_of_the_authors_code_at_true_size(tmp_path):
    recorded = json.loads((DATA / "hpsv2_full.json").read_text())
    assert_scores_match(recorded, str(save_checkpoint(build_clip_layout(recorded["config"]), tmp_path / "full.pt")))


def test_the_options_record_what_the_score_depends_on(checkpoint):
    options = scorers.load(Metric(kind="hpsv2", weights=checkpoint(SMALL["config"]), antialias=False)).options
    assert json.loads(json.dumps(options)) == options
    assert {key: options[key] for key in ("version", "antialias", "jpeg_quality", "architecture", "scale")} == {
        "version": "v2.1",
        "antialias": False,
        "jpeg_quality": 75,
        "architecture": "ViT-H-14",
        "scale": 100,
    }
    assert len(options["sha256"]) == 64


def test_a_prompt_s_features_are_computed_once(checkpoint):
    scorer = scorers.load(Metric(kind="hpsv2", weights=checkpoint(SMALL["config"])))
    calls = []
    scorer.features.model.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for _ in range(2):
        scorer([make_image("tiny")] * 3, ["a", "b", "a"], [None] * 3)
    assert calls == [2]


def test_an_image_with_a_long_side_of_224_is_padded_to_a_square():
    """hpsv2x does not pad such an image, and its model fails."""
    prepared = hpsv2.preprocess_image(Image.new("RGB", (224, 100), "white"), side=224, antialias=True, jpeg_quality=0)
    assert prepared.shape == (3, 224, 224)


def test_the_summary_follows_the_benchmark():
    scores = {"anime": list(np.linspace(20, 30, 200)), "photo": [27.0] * 80}
    groups = [np.mean(scores["anime"][:80]), np.mean(scores["anime"][80:160]), np.mean(scores["anime"][160:])]
    table = hpsv2.build_style_table(scores)
    assert table.mean == pytest.approx((25 * 200 + 27 * 80) / 280)
    assert table.styles["anime"].to_dict() == pytest.approx({"mean": np.mean(groups), "std": np.std(groups)})
    assert table.styles["photo"].to_dict() == pytest.approx({"mean": 27, "std": 0})


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_the_file_of_a_folder_matches_the_version(tmp_path, version):
    save_checkpoint(build_clip_layout(SMALL["config"]), tmp_path / hpsv2.FILES[version])
    other = {"v2.0": "v2.1", "v2.1": "v2.0"}[version]
    scorers.check(Metric(kind="hpsv2", weights=str(tmp_path), version=version))
    with pytest.raises(UserError, match=re.escape(hpsv2.FILES[other])):
        scorers.check(Metric(kind="hpsv2", weights=str(tmp_path), version=other))
    with pytest.raises(UserError, match=f"^evaluation.metrics.weights: got .*; expected .* for version {other}"):
        scorers.check(Metric(kind="hpsv2", weights=str(tmp_path / hpsv2.FILES[version]), version=other))


def test_a_field_of_another_metric_is_rejected():
    with pytest.raises(
        UserError, match=r"^evaluation.metrics.prefix: got 'x'; expected one of the fields that 'hpsv2' reads"
    ):
        scorers.check(Metric(kind="hpsv2", weights="weights.pt", prefix="x"))
