"""Diversity: how much the images of one prompt differ over seeds.

A student that draws the same image for every noise may be accurate, and has collapsed. Two measures, each a score of an
image whose mean over images is the measure:

- where a judge tells what images show, the normalised entropy of an attribute that the prompt leaves open: an image's
  score is -log of the share of images that show its value, divided by the log of the number of values (1: all values
  are equally frequent, 0: always the same);
- elsewhere, the mean cosine distance of CLIP's image features to those of the prompt's other images.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image

from datasets_prep.shapes.scene import ATTRIBUTES, COLOURS, SHAPES
from pipeline.evaluation.plan import DIVERSITY_SET, EvalSample
from pipeline.evaluation.results import EvaluationRow
from pipeline.evaluation.scorers.clip import ClipScore
from pipeline.evaluation.scorers.scorer import Options

METRIC = "diversity"
NUM_VALUES = {"shape": len(SHAPES), "colour": len(COLOURS), "background": len(COLOURS)}


def build_samples(prompts: Sequence[str], seeds: int, first_seed: int) -> list[list[EvalSample]]:
    """Return the samples of each prompt: the same seeds for all, and no attribute that they should show."""
    return [
        [EvalSample(DIVERSITY_SET, number * seeds + offset, prompt, "", first_seed + offset) for offset in range(seeds)]
        for number, prompt in enumerate(prompts)
    ]


def add_diversity(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """Return all rows; judged ones of the diversity set get `diversity` and a `diversity_ATTRIBUTE` each."""
    groups: dict[tuple[str, str], list[EvaluationRow]] = {}
    for row in rows:
        if row.set == DIVERSITY_SET and "quality" in row.shown:
            groups.setdefault((row.system, row.prompt), []).append(row)
    surprisals = {
        key: {name: compute_surprisals([row.shown[name] for row in group], NUM_VALUES[name]) for name in ATTRIBUTES}
        for key, group in groups.items()
    }
    scored = []
    for row in rows:
        by_attribute = surprisals.get((row.system, row.prompt)) if row.set == DIVERSITY_SET else None
        if by_attribute:
            scores = {f"{METRIC}_{name}": values[row.shown[name]] for name, values in by_attribute.items()}
            mean = sum(scores.values()) / len(scores)
            row = replace(row, scores={**row.scores, METRIC: mean, **scores})
        scored.append(row)
    return scored


def compute_surprisals(values: Sequence[str], num_values: int) -> dict[str, float]:
    """Return each value's surprisal, whose mean over `values` is the attribute's normalised entropy."""
    counts = Counter(values)
    return {value: -math.log(count / len(values)) / math.log(num_values) for value, count in counts.items()}


@dataclass(frozen=True)
class PairwiseDistance:
    """`diversity`: an image's mean cosine distance to the other images of its prompt, 0..2, by a CLIP's features."""

    clip: ClipScore

    @property
    def options(self) -> Options:
        """The options of the CLIP."""
        return self.clip.options

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Score images that were sampled together; an image alone has no distance."""
        features = self.clip.encode_images(images)
        same = torch.tensor([[a == b for b in prompts] for a in prompts]).float()
        same.fill_diagonal_(0)
        distances = (1 - features @ features.T).cpu() * same
        return {METRIC: (distances.sum(1) / same.sum(1)).tolist()}
