"""The exclusion test: whether a negative prompt removes what the plain image shows, and keeps the rest.

Only seeds whose plain image shows the attribute count. With eight colours, seven plain images in eight "exclude" red by
chance; they say nothing about a negative prompt.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from datasets_prep.shapes.prompts import PAIRS, ExclusionPair
from pipeline.evaluation.contact_sheet import round_to_uint8
from pipeline.evaluation.judges.clip_judge import estimate_removed_share
from pipeline.evaluation.results import ExclusionShares, JudgeAccuracy, PairShares
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.evaluation.statistics import Share, share

NEGATED = 'in the prompt: "not ..."'
OUTCOMES = ("removed", "kept", "clean")  # the outcomes of a trial


class Judge(Protocol):
    """A judge of what images show."""

    def classify_attributes(self, images: Tensor) -> list[dict[str, str]]:
        """Return the value of every attribute of each image [B, 3, H, W] in -1..1."""


@dataclass(frozen=True)
class Trial:
    """One pair and seed whose plain image shows the attribute, and the outcome by one sampling method."""

    pair: ExclusionPair
    seed: int
    sampling: str
    selects_scale: bool
    removed: bool
    kept: bool
    clean: bool

    @staticmethod
    def from_shown(
        pair: ExclusionPair, seed: int, sampling: str, shown: Mapping[str, str], *, selects_scale: bool
    ) -> "Trial":
        """Judge an image by what it shows."""
        return Trial(
            pair,
            seed,
            sampling,
            selects_scale,
            removed=shown[pair.attribute] != pair.value,
            kept=all(shown[name] == value for name, value in pair.prompted),
            clean=shown["quality"] == "clean",
        )


@dataclass(frozen=True)
class ImageGroup:
    """Images [N, 3, H, W] of one pair by one system, with their seeds, and whether those seeds were selected."""

    system: str
    seeds: list[int]
    images: Tensor
    selected: bool


def sample_pair(
    sampler: Sampler, judge: Judge, pair: ExclusionPair, samplings: Sequence[SamplingMethod], seeds: Sequence[int]
) -> Iterator[ImageGroup]:
    """Yield the images of one pair by every sampling method, and with the negative in the prompt's words.

    A seed is selected if its plain image shows the attribute and the prompt; only selected seeds are sampled again.
    The first group is the plain images of those, the last the plain images of the other seeds.
    """
    plain = sampler.sample(SamplingMethod(), [pair.prompt] * len(seeds), seeds)
    shows = [_shows(shown, pair) for shown in judge.classify_attributes(round_to_uint8(plain))]
    selected, unselected = (
        [seed for seed, flag in zip(seeds, shows, strict=True) if flag is wanted] for wanted in (True, False)
    )
    if selected:
        count = len(selected)
        yield ImageGroup(SamplingMethod().label, selected, plain[torch.tensor(shows)], selected=True)
        for sampling in samplings:
            images = sampler.sample(sampling, [pair.prompt] * count, selected, [pair.negative_prompt] * count)
            yield ImageGroup(sampling.label, selected, images, selected=True)
        images = sampler.sample(SamplingMethod(), [negate_prompt(pair)] * count, selected)
        yield ImageGroup(NEGATED, selected, images, selected=True)
    if unselected:
        yield ImageGroup(SamplingMethod().label, unselected, plain[~torch.tensor(shows)], selected=False)


def negate_prompt(pair: ExclusionPair) -> str:
    """Return the prompt with the negative in words."""
    return f"{pair.prompt}, not {pair.negative_prompt}"


def _shows(shown: Mapping[str, str], pair: ExclusionPair) -> bool:
    return shown[pair.attribute] == pair.value and all(shown[name] == value for name, value in pair.prompted)


def run_trials(
    sampler: Sampler,
    judge: Judge,
    samplings: Sequence[SamplingMethod],
    seeds: Sequence[int],
    *,
    selects_scale: bool = False,
) -> list[Trial]:
    """Return the trials of every sampling method on every pair and selected seed."""
    return [
        Trial.from_shown(pair, seed, group.system, shown, selects_scale=selects_scale)
        for pair in PAIRS
        for group in sample_pair(sampler, judge, pair, samplings, seeds)
        if group.selected
        for seed, shown in zip(group.seeds, judge.classify_attributes(group.images), strict=True)
    ]


def choose_scale(trials: Iterable[Trial], samplings: Sequence[SamplingMethod]) -> SamplingMethod:
    """Return the sampling method with the best worst case of removed and kept, on the trials that choose the scale."""
    collected = list(trials)

    def worst(sampling: SamplingMethod) -> float:
        group = [trial for trial in collected if trial.sampling == sampling.label and trial.pair.trained]
        return min(share([t.removed for t in group]).value, share([t.kept for t in group]).value) if group else -1.0

    return max(samplings, key=worst)


def summarise(collected: Iterable[Trial]) -> list[ExclusionShares]:
    """Return three shares for each sampling method, over negatives used in training and over the others."""
    rows: list[ExclusionShares] = []
    test = [trial for trial in collected if not trial.selects_scale]
    for sampling in dict.fromkeys(trial.sampling for trial in test):
        for trained in (True, False):
            group = [trial for trial in test if trial.sampling == sampling and trial.pair.trained == trained]
            if group:
                shares = {name: share([getattr(t, name) for t in group]) for name in OUTCOMES}
                rows.append(ExclusionShares(sampling_method=sampling, trained_negative=trained, **shares))
    return rows


def summarise_by_pair(collected: Iterable[Trial]) -> list[PairShares]:
    """Return the share of images without the attribute, by pair and method, as in the paper's Table 2."""
    groups: dict[tuple[ExclusionPair, str], list[Trial]] = {}
    for trial in collected:
        if not trial.selects_scale:
            groups.setdefault((trial.pair, trial.sampling), []).append(trial)
    return [
        PairShares(
            prompt=pair.prompt,
            negative_prompt=pair.negative_prompt,
            sampling_method=sampling,
            removed=share([trial.removed for trial in group]),
            kept=share([trial.kept for trial in group]),
        )
        for (pair, sampling), group in groups.items()
    ]


def correct_for_judge_errors(
    row: PairShares, accuracies: Mapping[str, JudgeAccuracy], selected: Mapping[tuple[str, str], Share]
) -> PairShares:
    """Return a pair's shares with the share removed corrected for the judge's errors, with a 95 % interval.

    `selected` has, by prompt and negative prompt, the share of correct plain images in which the judge found the
    attribute.
    """
    accuracy, shown = accuracies.get(row.negative_prompt), selected.get((row.prompt, row.negative_prompt))
    if accuracy is None or shown is None:
        return row
    removed = estimate_removed_share(row.removed, shown, accuracy.sensitivity, accuracy.specificity)
    return row.model_copy(update={"removed_corrected": removed})


def compute_method_shares(collected: Iterable[Trial], sampling: SamplingMethod) -> dict[str, float]:
    """Return the number of images of one method, and the shares removed, kept and clean."""
    group = [trial for trial in collected if trial.sampling == sampling.label]
    shares = {name: share([getattr(trial, name) for trial in group]).value for name in OUTCOMES}
    return {"images": len(group), **shares}
