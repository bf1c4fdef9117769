"""The plan of an evaluation: samples of prompt sets, the systems that are compared on them, and units of work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from datasets_prep.shapes.prompts import ExclusionPair
from pipeline.evaluation.sampling import SamplingMethod
from pipeline.recipe import Evaluation

STUDENT, TEACHER = "student", "teacher"
STUDENT_SYSTEM = "student"
EXCLUSION_SET = "exclusion"
DIVERSITY_SET = "diversity"
PLAIN = SamplingMethod()
T = TypeVar("T")


@dataclass(frozen=True)
class EvalSample:
    """An image to sample: its prompt set, prompt, negative prompt and the seed of its noise.

    `expected` are the attributes that the image should show, if known.
    """

    set: str
    index: int
    prompt: str
    negative_prompt: str
    seed: int
    expected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class System:
    """A model and how it is sampled.

    Attributes:
        name: its name in results.
        model: `STUDENT` or `TEACHER`.
        sampling: the sampling method.
        uses_negative: whether it is given each sample's negative prompt.
        negative_prompt_override: the negative prompt in place of the samples' own, if not empty.
        subset_only: whether it samples only the first `teacher_prompts` of a set, because it is slow.
        measures_diversity: whether it samples the diversity set too.
    """

    name: str
    model: str
    sampling: SamplingMethod = PLAIN
    uses_negative: bool = False
    negative_prompt_override: str = ""
    subset_only: bool = False
    measures_diversity: bool = False

    def choose_negative_prompt(self, sample: EvalSample) -> str | None:
        """Return the negative prompt that a sample is made with, or None."""
        return (self.negative_prompt_override or sample.negative_prompt) if self.uses_negative else None


@dataclass(frozen=True)
class SampleUnit:
    """A unit of work: a system's images of consecutive samples."""

    system: System
    samples: tuple[EvalSample, ...]


@dataclass(frozen=True)
class ExclusionUnit:
    """A unit of work: one pair of prompt and negative prompt on some seeds, by every sampling method."""

    pair: ExclusionPair
    samplings: tuple[SamplingMethod, ...]
    seeds: tuple[int, ...]
    selects_scale: bool


WorkUnit = SampleUnit | ExclusionUnit


def build_work_units(
    options: Evaluation,
    prompt_sets: Sequence[Sequence[EvalSample]],
    systems: Sequence[System],
    pairs: Sequence[ExclusionPair],
) -> list[WorkUnit]:
    """Return the work units of an evaluation, in an order that does not depend on the workers."""
    units: list[WorkUnit] = []
    for system in systems:
        for samples in prompt_sets:
            selected = samples[: options.teacher_prompts] if system.subset_only else samples
            if samples and samples[0].set == DIVERSITY_SET:
                selected = samples if system.measures_diversity else []
            units += [SampleUnit(system, tuple(part)) for part in _iter_batches(selected, options.batch_size)]
    return units + list(_iter_exclusion_units(options, pairs))


def build_student_systems(options: Evaluation) -> list[System]:
    """Return the student with every sampling method."""
    steered = [
        System(f"{STUDENT_SYSTEM}, {sampling.label}", STUDENT, sampling, uses_negative=True)
        for sampling in list_negative_samplings(options)
    ]
    return [System(STUDENT_SYSTEM, STUDENT, measures_diversity=True), *steered]


def build_teacher_sampling(options: Evaluation) -> SamplingMethod:
    """Return the teacher's sampling method, in many steps with guidance."""
    return SamplingMethod("steps", options.teacher_guidance, options.teacher_steps)


def list_nasa_samplings(options: Evaluation) -> list[SamplingMethod]:
    """Return NASA at each of the recipe's scales."""
    return [SamplingMethod("nasa", scale) for scale in options.scales]


def list_negative_samplings(options: Evaluation) -> list[SamplingMethod]:
    """Return the one-step sampling methods that take a negative prompt."""
    return [*list_nasa_samplings(options), SamplingMethod("cfg", options.cfg_scale)]


def _iter_exclusion_units(options: Evaluation, pairs: Sequence[ExclusionPair]) -> Iterator[ExclusionUnit]:
    """Yield the pairs on two groups of seeds: a third chooses the scale, the others test it."""
    first = options.seed * 1000
    split = first + options.exclusion_seeds // 3
    last = first + options.exclusion_seeds
    for seeds, samplings, selects_scale in (
        (range(first, split), list_nasa_samplings(options), True),
        (range(split, last), list_negative_samplings(options), False),
    ):
        for pair in pairs:
            for part in _iter_batches(seeds, options.batch_size):
                yield ExclusionUnit(pair, tuple(samplings), tuple(part), selects_scale)


def _iter_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
