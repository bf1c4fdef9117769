"""What images are made for: sets of prompts, and the systems that are compared on them, in pieces of work."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from datasets_prep.evaluation import NEGATIVE_PROMPTS
from datasets_prep.shapes.prompts import BAD_PHOTO, DEGRADATIONS, Pair, held_out_prompts
from datasets_prep.shapes.prompts import PAIRS as SHAPES_PAIRS
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.evaluation import pairs
from pipeline.evaluation.sampling import Way
from pipeline.prompts import prepared
from pipeline.prompts.benchmarks import HPSV2, NEGOPT
from pipeline.recipe import BUNDLED, Evaluation, Recipe
from pipeline.storage import Folder

JUDGED = ("shape", "colour", "background")
HELD_OUT, OWN, EXCLUDED = "held-out", "own prompts", "exclusion"
STUDENT = "student, 1 step"
PLAIN = Way()
TABLE_OF = {"hpsv2": HPSV2, "negopt": NEGOPT}


@dataclass(frozen=True)
class Ask:
    """An image to make: of a set, the prompt and the negative prompt beside it, and the seed of its noise.

    `asked` is what the image should show, attribute by attribute, where that is known.
    """

    set: str
    index: int
    prompt: str
    negative_prompt: str
    seed: int
    asked: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class System:
    """What is compared: a model, and how it makes images.

    Attributes:
        model: "student" or "teacher".
        negative: whether the way is given each ask's negative prompt.
        away: what it is given instead, where it is not empty.
        few: whether it takes the first `teacher_prompts` of a set alone, being slow.
    """

    name: str
    model: str
    way: Way = PLAIN
    negative: bool = False
    away: str = ""
    few: bool = False

    def away_from(self, ask: Ask) -> str | None:
        return (self.away or ask.negative_prompt) if self.negative else None


@dataclass(frozen=True)
class Batch:
    """A piece of work: a system's images of consecutive asks."""

    system: System
    asks: tuple[Ask, ...]


@dataclass(frozen=True)
class Exclusion:
    """A piece of work: one pair on some seeds, in every way."""

    pair: Pair
    ways: tuple[Way, ...]
    seeds: tuple[int, ...]
    calibration: bool


Piece = Batch | Exclusion


def pieces(recipe: Recipe, prompts: Folder) -> list[Piece]:
    """All the work of an evaluation, in an order that does not depend on who does it. `prompts` are the run's own."""
    options = recipe.evaluation
    sets = _sets(recipe, prompts)
    found: list[Piece] = []
    for system in systems(recipe):
        for asks in sets:
            own = asks[: options.teacher_prompts] if system.few else asks
            found += [Batch(system, tuple(part)) for part in _parts(own, options.batch_size)]
    return found + list(_exclusion(recipe))


def systems(recipe: Recipe) -> list[System]:
    """The student in every way, and its teacher. "Named" is away from the degradations by name, not a bad photo."""
    options = recipe.evaluation
    many = Way("steps", options.teacher_guidance, options.teacher_steps)
    found = [System(STUDENT, "student")]
    found += [System(f"{STUDENT}, {way.label}", "student", way, negative=True) for way in ways(options)]
    teacher = [System(f"teacher, {many.label}", "teacher", many, few=True)]
    if recipe.teacher == BUNDLED:
        found += [
            System(f"{STUDENT}, {way.label}, named", "student", way, negative=True, away=DEGRADATIONS)
            for way in nasa_ways(options)
        ]
        teacher = [
            System("teacher, 1 step", "teacher"),
            *teacher,
            System(f"teacher, {many.label}, negative", "teacher", many, negative=True, few=True),
            System(f"teacher, {many.label}, named", "teacher", many, negative=True, away=DEGRADATIONS, few=True),
        ]
    return [*found, *teacher] if options.teacher_prompts else found


def nasa_ways(options: Evaluation) -> list[Way]:
    return [Way("nasa", scale) for scale in options.scales]


def ways(options: Evaluation) -> list[Way]:
    """Those that take a negative prompt."""
    return [*nasa_ways(options), Way("cfg", options.cfg_scale)]


def _sets(recipe: Recipe, prompts: Folder) -> list[list[Ask]]:
    options = recipe.evaluation
    if recipe.teacher == BUNDLED:
        try:
            scenes = held_out_prompts(options.num_prompts, options.seed)
        except ValueError as error:
            raise UserError(f"evaluation.num_prompts: {error}") from None
        return [
            [
                Ask(HELD_OUT, i, text, BAD_PHOTO, options.seed + i, tuple((n, getattr(scene, n)) for n in JUDGED))
                for i, (text, scene) in enumerate(scenes)
            ]
        ]
    if not options.prompt_sets:
        texts = prepared.first_prompts(prompts)[: options.num_prompts]
        return [[Ask(OWN, i, text, NEGATIVE_PROMPTS["hpsv2"], options.seed + i) for i, text in enumerate(texts)]]
    benchmarks = Folder.from_uri(options.benchmarks) if options.benchmarks else prompts.parent / "benchmarks"
    manifest.read(benchmarks, "benchmarks")
    prepared_sets = [name for name in options.prompt_sets if name != "exclusion"]
    return [asks for name in prepared_sets for asks in _benchmark(name, benchmarks, options)]


def _benchmark(name: str, benchmarks: Folder, options: Evaluation) -> Iterator[list[Ask]]:
    """A prepared set's asks, style by style."""
    if not benchmarks.exists(TABLE_OF[name]):
        raise UserError(
            f"evaluation.prompt_sets: {name!r} is not among the prompts of {benchmarks.uri}; "
            f"prepare it with `python -m jobs prepare-benchmarks --{name}`, or leave it out"
        )
    rows = pq.read_table(io.BytesIO(benchmarks.read(TABLE_OF[name]))).to_pylist()
    for style in dict.fromkeys(row.get("style") for row in rows):
        own = [row for row in rows if row.get("style") == style][: options.num_prompts]
        yield [
            Ask(
                f"{name}/{style}" if style else name,
                row["index"],
                row["prompt"],
                row.get("negative_prompt") or NEGATIVE_PROMPTS["hpsv2"],
                options.seed + row["index"],
            )
            for row in own
        ]


def pairs_of(recipe: Recipe) -> tuple[Pair, ...]:
    if recipe.teacher == BUNDLED:
        return SHAPES_PAIRS
    return pairs.PAIRS if "exclusion" in recipe.evaluation.prompt_sets else ()


def _exclusion(recipe: Recipe) -> Iterator[Exclusion]:
    """The pairs on two groups of seeds: a third chooses the scale, the others test it."""
    options = recipe.evaluation
    own_pairs = pairs_of(recipe)
    first = options.seed * 1000
    split = first + options.exclusion_seeds // 3
    last = first + options.exclusion_seeds
    for seeds, own, calibration in (
        (range(first, split), nasa_ways(options), True),
        (range(split, last), ways(options), False),
    ):
        for pair in own_pairs:
            for part in _parts(seeds, options.batch_size):
                yield Exclusion(pair, tuple(own), tuple(part), calibration)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
