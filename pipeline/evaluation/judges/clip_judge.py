"""A zero-shot CLIP judge of real images: which of an attribute's classes an image shows.

It is calibrated on labelled images first, and the shares that it counts are corrected for its errors.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from datasets_prep.sources import decode_text
from pipeline.errors import UserError, invalid
from pipeline.evaluation.results import CorrectedShare, JudgeAccuracy
from pipeline.evaluation.scorers.clip import prepare
from pipeline.evaluation.scorers.pixels import iter_batches
from pipeline.evaluation.statistics import Share, share
from pipeline.models.clip.features import ClipFeatures

COLUMNS = ["file", "label"]
POSTERIOR_DRAWS = 10_000


@dataclass(frozen=True)
class ClipJudge:
    """Assigns each image the class whose text is nearest, such as {"man": "a photo of a man", "woman": ...}."""

    features: ClipFeatures
    texts: Mapping[str, str]
    batch_size: int = 16

    def classify(self, images: Sequence[Image]) -> list[str]:
        """Return the class of each image."""
        names, texts_CD = list(self.texts), self.features.encode_texts(list(self.texts.values()))
        ready = partial(prepare, side=self.features.image_size, normalization=self.features.normalization)
        nearest = [
            (self.features.encode_images(batch) @ texts_CD.T).argmax(-1)
            for batch in iter_batches(images, self.batch_size, ready)
        ]
        return [names[index] for index in torch.cat(nearest).tolist()] if nearest else []


def calibrate(answers: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> dict[str, JudgeAccuracy]:
    """Return the accuracy of a judge's answers for each class against all others."""
    pairs = list(zip(answers, labels, strict=True))
    return {
        name: JudgeAccuracy(
            sensitivity=share([answer == name for answer, label in pairs if label == name]),
            specificity=share([answer != name for answer, label in pairs if label != name]),
        )
        for name in classes
    }


def estimate_removed_share(removed: Share, selected: Share, sensitivity: Share, specificity: Share) -> CorrectedShare:
    """Return the share of shown attributes that were removed, by a judge that errs, with a 95 % interval.

    The judge selected the seeds: `selected` is the share of its positives among all plain images, and some of those do
    not show the attribute. The share that does is PPV = sensitivity x prevalence / positives. The true share among the
    new images follows from the judge's count by Rogan and Gladen's formula, because it judges them independently.
    Removed is then 1 - share / PPV, which is 0 if nothing changed, however often the judge errs.

    A judge may also repeat its error on the new image, since both come from the same noise: wrongly selected images
    then stay positive, and removed is (1 - counted) / (PPV specificity). The truth lies between the two. The interval
    spans both, each over 10,000 draws of all four shares from their Beta posteriors (Jeffreys' prior, fixed seed).
    `value` assumes independent errors, `persistent` repeated ones.
    """
    rng = np.random.default_rng(0)
    drawn = [
        rng.beta(counted.hits + 0.5, counted.total - counted.hits + 0.5, POSTERIOR_DRAWS)
        for counted in (removed, selected, sensitivity, specificity)
    ]
    values = _compute_removed_shares(*drawn)
    values = values[:, np.isfinite(values).all(axis=0)]
    points = _compute_removed_shares(
        *(np.array([counted.value]) for counted in (removed, selected, sensitivity, specificity))
    )[:, 0]
    if not values.size or not np.isfinite(points).all():
        return CorrectedShare(value=math.nan, persistent=math.nan, low=0.0, high=1.0)
    bounds = np.concatenate([np.percentile(values, [2.5, 97.5], axis=1).ravel(), points])
    fresh, persistent = (float(point) for point in points)
    return CorrectedShare(value=fresh, persistent=persistent, low=float(bounds.min()), high=float(bounds.max()))


def _compute_removed_shares(
    removed: np.ndarray, selected: np.ndarray, sensitivity: np.ndarray, specificity: np.ndarray
) -> np.ndarray:
    """Return the shares removed under independent and under persistent errors, [2, N], clipped to 0..1.

    They are NaN for a judge that is no better than chance.
    """
    informed = sensitivity + specificity - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        informed = np.where(informed > 0, informed, np.nan)
        prevalence = np.clip((selected + specificity - 1) / informed, 0, 1)
        ppv = np.clip(sensitivity * prevalence / selected, 0, 1)
        still = np.clip((1 - removed + specificity - 1) / informed, 0, 1)
        ppv = np.where(ppv > 0, ppv, np.nan)
        interval: np.ndarray = np.clip([1 - still / ppv, removed / (ppv * specificity)], 0, 1)
        return interval


def read_labels(table: Path, classes: Sequence[str]) -> list[tuple[Path, str]]:
    """Return files and labels of a CSV with the columns file,label; paths are relative to it.

    Raises:
        UserError: naming the line of an unknown column, file or class.
    """
    try:
        reader = csv.DictReader(io.StringIO(decode_text(table.read_bytes()), newline=""))
        rows, columns = list(reader), reader.fieldnames
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{table}: cannot be read: {error}. Give a CSV with the columns file,label.") from None
    if columns != COLUMNS:
        raise invalid(f"{table}: columns", columns, str(COLUMNS))
    for line, row in enumerate(rows, start=2):
        if row["label"] not in classes:
            raise invalid(f"{table}:{line}: label", row["label"], ", ".join(classes))
        if not row["file"] or not (table.parent / row["file"]).is_file():
            raise invalid(f"{table}:{line}: file", row["file"], "an existing file beside the table")
    return [(table.parent / row["file"], row["label"]) for row in rows]
