"""Who makes the images of an evaluation and scores them: an actor of Ray Data, one piece of work at a time.

A piece's images and each scorer's figures are files of the evaluation's folder, named by what they are of. A piece
whose files are there is read, not done again: a stopped evaluation goes on, and one more scorer costs only itself.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from PIL import Image
from ray.exceptions import RayActorError
from ray.util.annotations import RayDeprecationWarning

from pipeline import models
from pipeline.evaluation import exclusion
from pipeline.evaluation.asks import EXCLUDED, Batch, Exclusion, Piece, pieces
from pipeline.evaluation.panel import judge_of, scorers_of
from pipeline.evaluation.sampling import Sampler
from pipeline.evaluation.scorers import Scorer
from pipeline.evaluation.sheet import to_pixels
from pipeline.recipe import Evaluation, parse
from pipeline.remote_errors import iter_rows
from pipeline.storage import Folder

IMAGES, SCORES = "images", "scores"
ATTEMPTS = 4
VERSION = 2  # of a piece's rows: raised when they have other columns, so that older files are not read
Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What an actor is told; folders by their URIs. `models` are the hashes of student and teacher."""

    recipe_toml: str
    teacher: str
    student: str
    models: tuple[tuple[str, str], ...]
    folder: str
    prompts: str


class Studio:
    """Called with the numbers of pieces; gives the rows of each, without the images, and who scored them, as JSON."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.recipe = setup, parse(setup.recipe_toml)
        self.folder = Folder.from_uri(setup.folder)
        self.pieces = pieces(self.recipe, Folder.from_uri(setup.prompts))
        self.options: dict[str, dict[str, Any]] = {}  # of each column that a scorer gave
        self.device = "cuda" if self.recipe.evaluation.gpus_per_process else "cpu"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = [self.rows(self.pieces[int(number)]) for number in batch["piece"]]
        options = [self.options] * len(done)
        return {"rows": np.array([json.dumps(each) for each in zip(done, options, strict=True)], dtype=object)}

    @torch.no_grad()
    def rows(self, piece: Piece) -> list[Row]:
        key = self._key(piece)
        made = self._kept(f"{key}.parquet", IMAGES, lambda: list(self._make(piece)))
        images: list[Image.Image] = []
        rows = [{name: value for name, value in row.items() if name != "image"} | {"images": key} for row in made]
        for scorer in self.scorers if isinstance(piece, Batch) else [self.judge[1]]:
            name = f"{key}-{_hash(scorer.options)}.parquet"
            scores = self._kept(name, SCORES, lambda own=scorer: _score(own, made, images))  # type: ignore[misc]
            for row, own in zip(rows, scores, strict=True):
                row |= own
                self.options |= dict.fromkeys(own, scorer.options)
        return rows

    def _kept(self, name: str, place: str, make: Callable[[], list[Row]]) -> list[Row]:
        """The rows of this file, which is made where it is not there."""
        folder = self.folder / place
        if folder.exists(name):
            return list(pq.read_table(io.BytesIO(folder.read(name))).to_pylist())
        rows = make()
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        folder.write(name, buffer.getvalue())
        return rows

    def _make(self, piece: Piece) -> Iterator[Row]:
        return self._batch(piece) if isinstance(piece, Batch) else self._exclusion(piece)

    def _batch(self, piece: Batch) -> Iterator[Row]:
        sampler, asks = self._sampler(piece.system.model), piece.asks
        away = [piece.system.away_from(ask) for ask in asks]
        negatives = [text for text in away if text is not None] or None
        images = sampler.images(piece.system.way, [ask.prompt for ask in asks], [ask.seed for ask in asks], negatives)
        for ask, text, pixels in zip(asks, away, to_pixels(images), strict=True):
            row = {"system": piece.system.name, "set": ask.set, "index": ask.index, "seed": ask.seed}
            row |= {"prompt": ask.prompt, "negative_prompt": ask.negative_prompt, "away": text}
            yield row | {f"asked_{name}": value for name, value in ask.asked} | {"image": _png(pixels)}

    def _exclusion(self, piece: Exclusion) -> Iterator[Row]:
        pair, judge = piece.pair, self.judge[0]
        made = exclusion.pictures(self._sampler("student"), judge, pair, piece.ways, piece.seeds)
        for way, seeds, images, selected in made:
            row = {"system": way, "set": EXCLUDED, "prompt": pair.prompt, "negative_prompt": pair.negative_prompt}
            row |= {"calibration": piece.calibration, "selected": selected}
            for seed, pixels in zip(seeds, to_pixels(images), strict=True):
                yield row | {"seed": seed, "image": _png(pixels)}

    @cached_property
    def scorers(self) -> list[Scorer]:
        return scorers_of(self.recipe, self.device)

    @cached_property
    def judge(self) -> tuple[exclusion.Judge, Scorer]:
        return judge_of(self.recipe, self.device)

    def _sampler(self, model: str) -> Sampler:
        return self._student if model == "student" else self._teacher

    @cached_property
    def _teacher(self) -> Sampler:
        start = self.recipe.method.start_timestep
        folder = models.local_or_download(self.setup.teacher, self.recipe.teacher, revision=self.recipe.revision)
        return Sampler(models.load(folder, self.device, start_timestep=start))

    @cached_property
    def _student(self) -> Sampler:
        """It shares all but the denoiser with its teacher."""
        return student_of(self._teacher, Folder.from_uri(self.setup.student))

    def _key(self, piece: Piece) -> str:
        """Over all that its images follow from; of exclusion the judge chooses the seeds."""
        model = piece.system.model if isinstance(piece, Batch) else "student"
        judge = {} if isinstance(piece, Batch) else self.judge[1].options
        start = self.recipe.method.start_timestep
        return _hash([VERSION, dict(self.setup.models)[model], start, asdict(piece), judge])


def student_of(teacher: Sampler, folder: Folder) -> Sampler:
    with TemporaryDirectory() as scratch:
        denoiser = models.load_denoiser(folder.local_copy(Path(scratch)))
    return Sampler(teacher.model, denoiser=denoiser.to(teacher.device))


def work(setup: Setup, count: int, options: Evaluation) -> tuple[list[Row], dict[str, Any]]:
    """The rows of all `count` pieces, in their order, by as many actors as the recipe says; and each column's scorer.

    Where an actor or its machine dies it is begun again, from the pieces that are done.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _work(setup, count, options)
        except RayActorError as error:
            warnings.warn(f"an evaluating process died ({type(error).__name__}); going on with others", stacklevel=2)
    return _work(setup, count, options)


def _work(setup: Setup, count: int, options: Evaluation) -> tuple[list[Row], dict[str, Any]]:
    numbers = ray.data.from_items([{"piece": number} for number in range(count)], override_num_blocks=count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of max_restarts
        stream = numbers.map_batches(
            Studio,
            fn_constructor_args=(setup,),
            batch_size=1,
            num_cpus=options.cpus_per_process,
            num_gpus=options.gpus_per_process,
            concurrency=min(options.num_processes, count),
            max_restarts=0,  # with more Ray says, at each start, that a restart may fail; `work` begins again
        )
    stream.context.execution_options.preserve_order = True
    done = [json.loads(piece["rows"]) for piece in iter_rows(stream)]
    scorers = {column: found for _, own in done for column, found in own.items()}
    return [row for rows, _ in done for row in rows], scorers


def _score(scorer: Scorer, made: Sequence[Row], images: list[Image.Image]) -> list[Row]:
    """A row of figures an image; `images` are decoded once for all scorers."""
    if not made:
        return []
    if not images:
        images += [Image.open(io.BytesIO(row["image"])) for row in made]
    columns = scorer(images, [row["prompt"] for row in made], [row["negative_prompt"] for row in made])
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
