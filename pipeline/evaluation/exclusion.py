"""Exclusion: does a negative prompt remove what the plain image shows, and leave the rest alone?

Measured over the seeds whose plain image does show the attribute. With eight colours, seven plain
images in eight "exclude" red by luck; those say nothing about a negative prompt.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets_prep.shapes.prompts import PAIRS, Pair
from pipeline.evaluation.clip_judge import Calibration, removed_share
from pipeline.evaluation.sampling import Sampler, Way
from pipeline.evaluation.sheet import as_saved
from pipeline.evaluation.statistics import Share, share

NEGATED = 'in the prompt: "not ..."'


class Judge(Protocol):
    def attributes(self, images: Tensor) -> list[dict[str, str]]:
        """Of each image [B, 3, H, W] in -1..1 the value of every attribute."""


@dataclass(frozen=True)
class Trial:
    """One pair and seed whose plain image shows the attribute, and what one way made of it."""

    pair: Pair
    seed: int
    way: str
    calibration: bool
    removed: bool
    kept: bool
    clean: bool

    @staticmethod
    def of(pair: Pair, seed: int, way: str, shown: Mapping[str, str], *, calibration: bool) -> "Trial":
        return Trial(
            pair,
            seed,
            way,
            calibration,
            removed=shown[pair.attribute] != pair.value,
            kept=all(shown[name] == value for name, value in pair.asked),
            clean=shown["quality"] == "clean",
        )


def pictures(
    sampler: Sampler, judge: Judge, pair: Pair, ways: Sequence[Way], seeds: Sequence[int]
) -> Iterator[tuple[str, list[int], Tensor, bool]]:
    """Yield each way's label, its seeds and images, and whether those seeds were selected.

    Selected are the seeds whose plain image shows the attribute and what was asked for. The first is the plain images
    of those, then each way's, then the negative in words; the last is the plain images of the other seeds.
    """
    plain = sampler.images(Way(), [pair.prompt] * len(seeds), seeds)
    shows = [_shows(shown, pair) for shown in judge.attributes(as_saved(plain))]
    found, others = (
        [seed for seed, own in zip(seeds, shows, strict=True) if own is wanted] for wanted in (True, False)
    )
    if found:
        away = [pair.negative_prompt] * len(found)
        yield Way().label, found, plain[torch.tensor(shows)], True
        for way in ways:
            yield way.label, found, sampler.images(way, [pair.prompt] * len(found), found, away), True
        yield NEGATED, found, sampler.images(Way(), [negated(pair)] * len(found), found), True
    if others:
        yield Way().label, others, plain[~torch.tensor(shows)], False


def negated(pair: Pair) -> str:
    return f"{pair.prompt}, not {pair.negative_prompt}"


def _shows(shown: Mapping[str, str], pair: Pair) -> bool:
    return shown[pair.attribute] == pair.value and all(shown[name] == value for name, value in pair.asked)


def trials(
    sampler: Sampler, judge: Judge, ways: Sequence[Way], seeds: Sequence[int], *, calibration: bool = False
) -> list[Trial]:
    """Every way on every pair and seed whose plain image shows the pair's attribute and what was asked for."""
    return [
        Trial.of(pair, seed, label, shown, calibration=calibration)
        for pair in PAIRS
        for label, found, images, selected in pictures(sampler, judge, pair, ways, seeds)
        if selected
        for seed, shown in zip(found, judge.attributes(images), strict=True)
    ]


def best_scale(calibration: Iterable[Trial], ways: Sequence[Way]) -> Way:
    """The way with the best worst case of removed and kept, on the calibration seeds alone."""
    collected = list(calibration)

    def worst(way: Way) -> float:
        own = [trial for trial in collected if trial.way == way.label and trial.pair.trained]
        return min(share([t.removed for t in own]).value, share([t.kept for t in own]).value) if own else -1.0

    return max(ways, key=worst)


def summarise(collected: Iterable[Trial]) -> list[dict[str, Any]]:
    """For each way, over attributes used as negatives in training and over the others: three shares."""
    rows: list[dict[str, Any]] = []
    test = [trial for trial in collected if not trial.calibration]
    for way in dict.fromkeys(trial.way for trial in test):
        for trained in (True, False):
            own = [trial for trial in test if trial.way == way and trial.pair.trained == trained]
            if own:
                figures = {
                    name: share([getattr(t, name) for t in own]).as_dict() for name in ("removed", "kept", "clean")
                }
                rows.append({"way": way, "trained_negative": trained, **figures})
    return rows


def by_pair(collected: Iterable[Trial]) -> list[dict[str, Any]]:
    """As in the paper's Table 2: for each pair and way, the share of images that no longer show what is named."""
    groups: dict[tuple[Pair, str], list[Trial]] = {}
    for trial in collected:
        if not trial.calibration:
            groups.setdefault((trial.pair, trial.way), []).append(trial)
    return [
        {
            "prompt": pair.prompt,
            "negative_prompt": pair.negative_prompt,
            "way": way,
            **{name: share([getattr(t, name) for t in own]).as_dict() for name in ("removed", "kept")},
        }
        for (pair, way), own in groups.items()
    ]


def corrected(
    rows: Iterable[dict[str, Any]], calibration: Mapping[str, Calibration], selected: Mapping[tuple[str, str], Share]
) -> None:
    """Give each row of `by_pair` the share removed once the judge's errors are taken out, with a 95 % interval.

    `selected` has of each pair, by prompt and negative, how many of the plain images that show what was asked for the
    judge also found to show the attribute.
    """
    for row in rows:
        own = calibration.get(row["negative_prompt"])
        shown = selected.get((row["prompt"], row["negative_prompt"]))
        if own is not None and shown is not None:
            removed = Share(row["removed"]["hits"], row["removed"]["total"])
            row["removed_corrected"] = removed_share(removed, shown, own.sensitivity, own.specificity)


def shares(collected: Iterable[Trial], way: Way) -> dict[str, float]:
    """Of one way: how many images, and the shares in which the thing is removed, the rest is kept, the image clean."""
    own = [trial for trial in collected if trial.way == way.label]
    figures = {name: share([getattr(trial, name) for trial in own]).value for name in ("removed", "kept", "clean")}
    return {"images": len(own), **figures}
