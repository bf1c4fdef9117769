"""The worker of an evaluation: a Ray Data actor that samples images and scores them, one unit of work at a time.

A unit's images and each scorer's scores are files of the evaluation's folder, named by what they depend on. An existing
file is read, not computed again: an interrupted evaluation resumes, and one more scorer costs only itself.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from PIL import Image
from ray.exceptions import RayActorError
from ray.util.annotations import RayDeprecationWarning

from pipeline import logging_setup, models
from pipeline.evaluation import exclusion
from pipeline.evaluation.contact_sheet import to_pixels
from pipeline.evaluation.image_store import IMAGES, encode_png, open_png
from pipeline.evaluation.plan import (
    DIVERSITY_SET,
    EXCLUSION_SET,
    STUDENT,
    ExclusionUnit,
    SampleUnit,
    WorkUnit,
    build_work_units,
)
from pipeline.evaluation.prometheus import EvaluationGauges
from pipeline.evaluation.results import EvaluationRow
from pipeline.evaluation.sampling import Sampler
from pipeline.evaluation.scorers import Scorer
from pipeline.evaluation.scorers.scorer import Options
from pipeline.evaluation.suites import build_suite
from pipeline.hashing import hash_json
from pipeline.recipe import Evaluation, Recipe
from pipeline.remote_errors import iter_rows
from pipeline.storage import Folder

SCORES = "scores"  # the folder of scores
MAX_ATTEMPTS = 4
VERSION = 5  # version of a unit's rows; raise it when their columns change, so that older files are not read
KEY_LENGTH = 24
Columns = dict[str, Any]
"""A row of a Parquet file, whose columns depend on the prompt set and the scorers."""
Results = tuple[list[EvaluationRow], dict[str, Options]]
"""All rows, and the options of each column's scorer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerConfig:
    """Plain data for an actor; folders by their URIs. `model_sha256` are the hashes of student and teacher."""

    recipe: Recipe
    teacher: str
    student: str
    model_sha256: tuple[tuple[str, str], ...]
    folder: str
    prompts: str


def plan_work_units(recipe: Recipe, prompt_folder: Folder) -> list[WorkUnit]:
    """Return the units of a recipe's evaluation; `prompt_folder` is the run's prepared folder."""
    suite = build_suite(recipe)
    return build_work_units(
        recipe.evaluation, suite.build_prompt_sets(prompt_folder), suite.build_systems(), suite.pairs
    )


class EvaluationWorker:
    """Maps numbers of work units to their rows, without the images, and to the options of each column's scorer."""

    def __init__(self, config: WorkerConfig) -> None:
        logging_setup.configure()
        self.config, self.recipe = config, config.recipe
        self.suite = build_suite(self.recipe)
        self.folder = Folder.from_uri(config.folder)
        self.units = plan_work_units(self.recipe, Folder.from_uri(config.prompts))
        self.options: dict[str, Options] = {}  # the scorer's options by column
        self.device = "cuda" if self.recipe.evaluation.gpus_per_process else "cpu"

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rows of a batch of units, and the options of their scorers, as JSON."""
        units = [self.compute_rows(self.units[int(number)]) for number in batch["unit"]]
        rows = [json.dumps([row.to_columns() for row in unit]) for unit in units]
        options = [json.dumps(self.options)] * len(rows)
        return {"rows": np.array(rows, dtype=object), "options": np.array(options, dtype=object)}

    @torch.no_grad()
    def compute_rows(self, unit: WorkUnit) -> list[EvaluationRow]:
        """Return one row per image of a unit, with its scores."""
        key = self._hash_inputs(unit)
        sampled = self._load_or_compute(IMAGES, f"{key}.parquet", lambda: list(self._sample(unit)))
        pngs = [columns.pop("image") for columns in sampled]
        rows = [replace(EvaluationRow.from_columns(columns), images=key) for columns in sampled]
        images: list[Image.Image] = []
        for scorer in self._choose_scorers(unit):
            name = f"{key}-{hash_json(scorer.options)[:KEY_LENGTH]}.parquet"
            scores = self._load_or_compute(SCORES, name, partial(_score, scorer, rows, pngs, images))
            rows = [_add_scores(row, columns) for row, columns in zip(rows, scores, strict=True)]
            options = scorer.options | self.recipe.evaluation.reduced_precision
            self.options |= {column: options for columns in scores for column in columns}
        return rows

    def _choose_scorers(self, unit: WorkUnit) -> Sequence[Scorer]:
        if isinstance(unit, ExclusionUnit):
            return [self.judge[1]]
        return [self.diversity_scorer] if unit.samples[0].set == DIVERSITY_SET else self.scorers

    def _load_or_compute(self, subfolder: str, name: str, compute: Callable[[], list[Columns]]) -> list[Columns]:
        """Return the rows of a file, computing and writing them if it does not exist."""
        folder = self.folder / subfolder
        if folder.exists(name):
            return list(folder.read_table(name).to_pylist())
        rows = compute()
        folder.write_table(name, pa.Table.from_pylist(rows))
        return rows

    def _sample(self, unit: WorkUnit) -> Iterator[Columns]:
        return self._sample_prompts(unit) if isinstance(unit, SampleUnit) else self._sample_exclusion(unit)

    def _sample_prompts(self, unit: SampleUnit) -> Iterator[Columns]:
        sampler, samples = self._load_sampler(unit.system.model), unit.samples
        negatives = [unit.system.choose_negative_prompt(sample) for sample in samples]
        images = sampler.sample(
            unit.system.sampling,
            [sample.prompt for sample in samples],
            [sample.seed for sample in samples],
            [text for text in negatives if text is not None] or None,
        )
        for sample, used, pixels in zip(samples, negatives, to_pixels(images), strict=True):
            row = EvaluationRow(
                unit.system.name,
                sample.set,
                sample.prompt,
                sample.negative_prompt,
                sample.seed,
                index=sample.index,
                used_negative_prompt=used,
                expected=dict(sample.expected),
            )
            yield row.to_columns() | {"image": encode_png(pixels)}

    def _sample_exclusion(self, unit: ExclusionUnit) -> Iterator[Columns]:
        pair, judge = unit.pair, self.judge[0]
        for group in exclusion.sample_pair(self._load_sampler(STUDENT), judge, pair, unit.samplings, unit.seeds):
            for seed, pixels in zip(group.seeds, to_pixels(group.images), strict=True):
                row = EvaluationRow(
                    group.system,
                    EXCLUSION_SET,
                    pair.prompt,
                    pair.negative_prompt,
                    seed,
                    selects_scale=unit.selects_scale,
                    selected=group.selected,
                )
                yield row.to_columns() | {"image": encode_png(pixels)}

    @cached_property
    def scorers(self) -> list[Scorer]:
        """The suite's scorers."""
        return self.suite.build_scorers(self.device)

    @cached_property
    def diversity_scorer(self) -> Scorer:
        """The suite's scorer of the diversity set."""
        return self.suite.build_diversity_scorer(self.device)

    @cached_property
    def judge(self) -> tuple[exclusion.Judge, Scorer]:
        """The suite's judge, and the scorer that records it."""
        return self.suite.build_judge(self.device)

    def _load_sampler(self, model: str) -> Sampler:
        return self._student if model == STUDENT else self._teacher

    @cached_property
    def _teacher(self) -> Sampler:
        folder = models.local_or_download(self.config.teacher, self.recipe.teacher, revision=self.recipe.revision)
        return Sampler(models.load_for_evaluation(self.recipe, folder, self.device))

    @cached_property
    def _student(self) -> Sampler:
        return load_student_sampler(self._teacher, Folder.from_uri(self.config.student))

    def _hash_inputs(self, unit: WorkUnit) -> str:
        """Return a hash of everything that a unit's images depend on; the judge selects the exclusion test's seeds."""
        model = unit.system.model if isinstance(unit, SampleUnit) else STUDENT
        judge = {} if isinstance(unit, SampleUnit) else self.judge[1].options
        sha256, options = dict(self.config.model_sha256)[model], models.get_student_options(self.recipe)
        precision = self.recipe.evaluation.reduced_precision.values()
        return hash_json([VERSION, sha256, options, asdict(unit), judge, *precision])[:KEY_LENGTH]


def load_student_sampler(teacher: Sampler, folder: Folder) -> Sampler:
    """Return a student that shares everything but the denoiser with its teacher."""
    with TemporaryDirectory() as scratch:
        denoiser = models.load_denoiser(folder.copy_to_local(Path(scratch)))
    models.cast_denoiser(denoiser, teacher.model)
    return Sampler(teacher.model, denoiser=denoiser.to(teacher.device))


def run_workers(
    config: WorkerConfig, count: int, options: Evaluation
) -> tuple[list[EvaluationRow], dict[str, Options]]:
    """Return the rows of all `count` units, in order, and the options of each column's scorer.

    If an actor or its node dies, the evaluation starts again and reads the units that are done.
    """
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return _run_once(config, count, options)
        except RayActorError as error:
            logger.warning("an evaluation process died (%s); starting others", type(error).__name__)
    return _run_once(config, count, options)


def _run_once(config: WorkerConfig, count: int, options: Evaluation) -> Results:
    numbers = ray.data.from_items([{"unit": number} for number in range(count)], override_num_blocks=count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # the deprecation of max_restarts
        stream = numbers.map_batches(
            EvaluationWorker,
            fn_constructor_args=(config,),
            batch_size=1,
            num_cpus=options.cpus_per_process,
            num_gpus=options.gpus_per_process,
            concurrency=min(options.num_processes, count),
            max_restarts=0,  # Ray warns at each start if it is more; `run_workers` starts again
        )
    stream.context.execution_options.preserve_order = True
    rows: list[EvaluationRow] = []
    scorers: dict[str, Options] = {}
    gauges = EvaluationGauges(config.recipe.name, dict(config.model_sha256)[STUDENT])
    gauges.report(count, count)
    for number, unit in enumerate(iter_rows(stream), 1):
        gauges.report(count, count - number)
        rows += map(EvaluationRow.from_columns, json.loads(unit["rows"]))
        scorers |= json.loads(unit["options"])
    return rows, scorers


def _score(
    scorer: Scorer, rows: Sequence[EvaluationRow], pngs: Sequence[bytes], images: list[Image.Image]
) -> list[Columns]:
    """Return one row of scores per image; `images` are decoded once for all scorers."""
    if not rows:
        return []
    if not images:
        images += map(open_png, pngs)
    columns = scorer(images, [row.prompt for row in rows], [row.negative_prompt for row in rows])
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _add_scores(row: EvaluationRow, columns: Mapping[str, Any]) -> EvaluationRow:
    return EvaluationRow.from_columns({**row.to_columns(), **columns})
