"""Exclusion: does a negative prompt remove what the plain image shows, and leave the rest alone?

Measured over the seeds whose plain image does show the attribute. With eight colours, seven plain
images in eight "exclude" red by luck; those say nothing about a negative prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets_prep.shapes.prompts import PAIRS, Pair
from pipeline.evaluation.judges import AttributeJudge
from pipeline.evaluation.sampling import Sampler, Way
from pipeline.evaluation.statistics import share


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


def trials(
    sampler: Sampler, judge: AttributeJudge, ways: Sequence[Way], seeds: Sequence[int], *, calibration: bool
) -> list[Trial]:
    """Every way on every pair and seed whose plain image shows the pair's attribute and what was asked for."""
    collected = []
    for pair in PAIRS:
        shown = showing(sampler, judge, pair, seeds)
        for way in [Way(), *ways]:
            collected += _judged(sampler, judge, pair, shown, way, calibration)
        collected += _negated(sampler, judge, pair, shown, calibration)
    return collected


def showing(sampler: Sampler, judge: AttributeJudge, pair: Pair, seeds: Sequence[int]) -> list[int]:
    """The seeds whose plain image shows the pair's attribute and all that its prompt asks for."""
    attributes = judge.attributes(sampler.images(Way(), [pair.prompt] * len(seeds), seeds))
    return [
        seed
        for seed, found in zip(seeds, attributes, strict=True)
        if found[pair.attribute] == pair.value and all(found[name] == value for name, value in pair.asked)
    ]


def _judged(
    sampler: Sampler, judge: AttributeJudge, pair: Pair, seeds: list[int], way: Way, calibration: bool, label: str = ""
) -> list[Trial]:
    if not seeds:
        return []
    prompt = f"{pair.prompt}, not {pair.negative_prompt}" if label else pair.prompt
    images = sampler.images(way, [prompt] * len(seeds), seeds, [pair.negative_prompt] * len(seeds))
    return [
        Trial(
            pair,
            seed,
            label or way.label,
            calibration,
            removed=found[pair.attribute] != pair.value,
            kept=all(found[name] == value for name, value in pair.asked),
            clean=found["quality"] == "clean",
        )
        for seed, found in zip(seeds, judge.attributes(images), strict=True)
    ]


def _negated(sampler: Sampler, judge: AttributeJudge, pair: Pair, seeds: list[int], calibration: bool) -> list[Trial]:
    return _judged(sampler, judge, pair, seeds, Way(), calibration, label='in the prompt: "not ..."')


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


def shares(collected: Iterable[Trial], way: Way) -> dict[str, float]:
    """Of one way: how many images, and the shares in which the thing is removed, the rest is kept, the image clean."""
    own = [trial for trial in collected if trial.way == way.label]
    figures = {name: share([getattr(trial, name) for trial in own]).value for name in ("removed", "kept", "clean")}
    return {"images": len(own), **figures}
