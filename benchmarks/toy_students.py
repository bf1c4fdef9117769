"""A distillation of the bundled toy teacher in one process without a cluster, and what its student is judged by."""

from collections.abc import Sequence

import numpy as np
import torch

from datasets_prep import negative_corpus
from datasets_prep.shapes.prompts import BAD_PHOTO, sample_held_out_prompts, sample_negatives
from datasets_prep.shapes.scene import ATTRIBUTES
from pipeline import ROOT, models
from pipeline.evaluation.diversity import NUM_VALUES, compute_surprisals
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.evaluation.suites.shapes_suite import OPEN_PROMPT
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.prompts.teacher_pairs import read_pairs
from pipeline.recipe import Recipe
from pipeline.training import engines
from pipeline.training.distiller import Distiller

BASE = str(ROOT / "benchmarks/shapes.toml")
NASA_I = SamplingMethod("nasa", 0.5)
DIVERSITY_SEEDS = range(256)


def build_distiller(options: Recipe, device: str = "cpu", make: engines.MakeEngine = engines.PlainEngine) -> Distiller:
    """Return a distiller of the bundled teacher at its first step, in one process."""
    corpus = negative_corpus.build_weighted_corpus(sample_negatives(options.prompts.negative_draws, options.seed))
    sampler = NegativeSampler.from_table(corpus, avoid_contradictions=options.prompts.avoid_contradictions)
    model = models.load_for_recipe(options, models.find_teacher_folder(options.teacher), device)
    built = engines.build_engines(options, model, torch.device(device), make=make)
    clip = Clip.load(options.train.clip_model, device) if options.train.clip_weight else None
    pairs = read_pairs(options, options.regression.pairs if options.regression.weight else "")
    return Distiller(options, model, built, sampler, clip, pairs=pairs)


def judge_held_out(
    sampler: Sampler, attributes: AttributeJudge, sampling: SamplingMethod, count: int, seed: int
) -> list[int]:
    """Return 1 for each held-out prompt whose image is clean with every attribute right, else 0."""
    texts, scenes = zip(*sample_held_out_prompts(count, seed), strict=True)
    images = sampler.sample(sampling, texts, range(seed, seed + count), [BAD_PHOTO] * count)
    return [
        int(shown["quality"] == "clean" and all(shown[key] == getattr(scene, key) for key in ATTRIBUTES))
        for shown, scene in zip(attributes.classify_attributes(images), scenes, strict=True)
    ]


def measure_diversity(
    sampler: Sampler, judge: AttributeJudge, seeds: Sequence[int] = DIVERSITY_SEEDS
) -> dict[str, float]:
    """Return the normalised entropy of each attribute over seeds of the open prompt."""
    shown = judge.classify_attributes(sampler.sample(SamplingMethod(), [OPEN_PROMPT] * len(seeds), seeds))
    return {
        name: compute_normalised_entropy([attributes[name] for attributes in shown], count)
        for name, count in NUM_VALUES.items()
    }


def compute_normalised_entropy(values: Sequence[str], num_values: int) -> float:
    """Return Shannon's entropy of the values' frequencies, divided by log(num_values), in 0..1."""
    surprisals = compute_surprisals(values, num_values)
    return float(np.mean([surprisals[value] for value in values]))
