from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.evaluation.judges.clip_judge import (
    ClipJudge,
    calibrate,
    estimate_removed_share,
    read_labels,
)
from pipeline.evaluation.results import JudgeAccuracy
from pipeline.evaluation.statistics import Share, share
from pipeline.models.clip.normalization import Normalization

TEXTS = {"red": "a red image", "green": "a green image", "blue": "a blue image"}


def build_judge(batch_size=2):
    """Return a judge whose image features are the mean colour, and whose text features are the three colours."""
    features = SimpleNamespace(
        image_size=4,
        normalization=Normalization(),
        encode_images=lambda pixels: pixels.mean((2, 3)),
        encode_texts=lambda texts: torch.eye(3)[[list(TEXTS.values()).index(text) for text in texts]],
    )
    return ClipJudge(features, TEXTS, batch_size)


def test_an_image_has_the_class_of_the_nearest_text():
    colours = ["blue", "red", "red", "lime", "blue"]
    images = [Image.new("RGB", (9, 7), colour) for colour in colours]
    assert build_judge().classify(images) == ["blue", "red", "red", "green", "blue"]
    assert build_judge().classify([]) == []


def test_each_class_is_calibrated_against_the_others():
    labels = ["red"] * 4 + ["green"] * 3 + ["blue"] * 3
    predictions = ["red", "red", "red", "blue", "green", "green", "red", "blue", "blue", "blue"]
    calibration = calibrate(predictions, labels, list(TEXTS))
    assert calibration["red"] == JudgeAccuracy(sensitivity=Share(3, 4), specificity=Share(5, 6))
    assert calibration["green"] == JudgeAccuracy(sensitivity=Share(2, 3), specificity=Share(7, 7))
    assert calibration["blue"].specificity.value == 6 / 7
    assert calibration["blue"].sensitivity.low == Share(3, 3).interval[0]


def write_labels(folder, text):
    (folder / "a.png").write_bytes(b"")
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def test_labels_are_read_with_the_files_beside_them(tmp_path):
    assert read_labels(write_labels(tmp_path, "file,label\na.png,red\n"), list(TEXTS)) == [(tmp_path / "a.png", "red")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_is_ignored(tmp_path, encoding):
    table = write_labels(tmp_path, "")
    table.write_bytes(("\ufeff" * (encoding == "utf-16-le") + "file,label\r\na.png,red\r\n").encode(encoding))
    assert read_labels(table, list(TEXTS)) == [(tmp_path / "a.png", "red")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,red\n", r"columns: got \['name', 'label'\]; expected \['file', 'label'\]"),
        (
            "file,label\na.png,red\na.png,pink\n",
            "labels.csv:3: label: got 'pink'; expected red, green, blue",
        ),
        ("file,label\na.png\n", "labels.csv:2: label: got None; expected"),
        ("file,label\nb.png,red\n", "labels.csv:2: file: got 'b.png'; expected an existing"),
        ("file,label\n,red\n", "labels.csv:2: file: got ''; expected an existing"),
        ("", "columns: got None; expected"),
    ],
)
def test_an_invalid_table_is_reported_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_labels(write_labels(tmp_path, text), list(TEXTS))
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"labels\.csv: cannot be read: .* Give a CSV"):
        read_labels(tmp_path / "labels.csv", list(TEXTS))


@pytest.mark.parametrize("removed", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("prevalence", "sensitivity", "specificity"), [(0.2, 0.9, 0.9), (0.5, 0.9, 0.9), (0.5, 0.95, 0.8)]
)
def test_the_removed_share_is_corrected_for_seeds_that_the_judge_selected(
    prevalence, sensitivity, specificity, removed
):
    """The judge errs independently on each image, so that most of the seeds it wrongly selected appear "removed"."""
    rng, images = np.random.default_rng(0), 200_000
    truth = rng.random(images) < prevalence

    def predict(present):
        return np.where(present, rng.random(images) < sensitivity, rng.random(images) >= specificity)

    selected = predict(truth)
    after = predict(truth & (rng.random(images) >= removed))
    observed = share((~after[selected]).tolist())
    positives = share([True] * round(1000 * sensitivity) + [False] * round(1000 * (1 - sensitivity)))
    negatives = share([True] * round(1000 * specificity) + [False] * round(1000 * (1 - specificity)))
    estimate = estimate_removed_share(observed, share(selected.tolist()), positives, negatives)
    assert estimate.value == pytest.approx(removed, abs=0.02)
    assert estimate.low <= removed + 0.001
    assert estimate.high >= removed - 0.001
    assert estimate.low <= estimate.value <= estimate.high
    if not removed:
        assert observed.value > 0.1, "the uncorrected share is too high"


@pytest.mark.parametrize("removed", [0.1, 0.5, 1.0])
def test_the_interval_covers_errors_that_recur_on_the_same_noise(removed):
    """The judge repeats its error on the new image unless the attribute was removed."""
    rng, images = np.random.default_rng(1), 200_000
    truth = rng.random(images) < 0.4
    draws = rng.random(images)
    plain = np.where(truth, draws < 0.9, draws >= 0.9)
    absent = truth & (rng.random(images) < removed)
    after = np.where(absent, rng.random(images) >= 0.9, plain)
    labels = Share(900, 1000)
    estimate = estimate_removed_share(share((~after[plain]).tolist()), share(plain.tolist()), labels, labels)
    assert estimate.persistent == pytest.approx(removed, abs=0.03)
    assert estimate.low - 0.01 <= removed <= estimate.high + 0.01


def test_few_labelled_images_give_a_wide_interval():
    few, many = (
        estimate_removed_share(
            share([True] * 60 + [False] * 40),
            share([True] * 50 + [False] * 50),
            Share(9 * n, 10 * n),
            Share(9 * n, 10 * n),
        )
        for n in (1, 100)
    )
    assert few.high - few.low > 1.3 * (many.high - many.low)


def test_a_judge_no_better_than_chance_gives_no_estimate():
    half = Share(50, 100)
    assert np.isnan(estimate_removed_share(half, half, half, half).value)
