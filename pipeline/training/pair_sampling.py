"""Sampling of the regression's pairs from the teacher, by Ray Data actors; run again to resume."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import ray.data
import torch

from pipeline import models
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.hashing import hash_json
from pipeline.prompts.prompt_dataset import PromptsManifest
from pipeline.prompts.prompt_stream import PromptStream
from pipeline.prompts.teacher_pairs import PAIRS_PER_FILE, TeacherPairs, list_pair_files
from pipeline.recipe import Recipe
from pipeline.remote_errors import iter_rows
from pipeline.storage import Folder

FIRST_SEED = 20_000_000  # apart from the seeds of evaluations and of the exclusion test
KEY_LENGTH = 12


@dataclass(frozen=True)
class PairConfig:
    """Plain data for an actor; the folder and the teacher's local folder by their paths."""

    recipe: Recipe
    teacher_folder: str
    folder: str


class PairActor:
    """A Ray Data actor that samples the pairs of one file and writes it."""

    def __init__(self, config: PairConfig) -> None:
        self.config, self.device = config, "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def sampler(self) -> Sampler:
        """The teacher, loaded on the first batch: an exception in a constructor is only an ActorDiedError."""
        recipe = self.config.recipe
        folder = models.local_or_download(self.config.teacher_folder, recipe.teacher, revision=recipe.revision)
        return Sampler(models.load_for_evaluation(recipe, Path(folder), self.device))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the files of a batch; return their numbers of pairs."""
        return {"pairs": np.array([self._write(*row) for row in zip(*batch.values(), strict=True)])}

    def _write(self, name: str, first: int, prompts: np.ndarray) -> int:
        options, texts = self.config.recipe.regression, list(prompts)
        seeds = [FIRST_SEED + int(first) + offset for offset in range(len(texts))]
        sampling = SamplingMethod("steps", options.guidance_scale, options.teacher_steps)
        latents = self.sampler.sample_latents(sampling, texts, seeds)
        Folder.from_uri(self.config.folder).write_table(name, TeacherPairs(texts, seeds, latents.half()).to_table())
        return len(texts)


def locate_pairs(recipe: Recipe, prompt_folder: Folder, teacher_sha256: str) -> Folder:
    """Return the folder beside the prompts for pairs that the recipe does not name.

    Its name is a hash of everything but the number of pairs that they depend on.
    """
    options, student = recipe.regression, models.get_student_options(recipe)
    precision = recipe.evaluation.reduced_precision.values()
    key = hash_json([teacher_sha256, student, options.teacher_steps, options.guidance_scale, *precision])[:KEY_LENGTH]
    return prompt_folder / f"pairs-{key}"


def sample_pairs(
    recipe: Recipe, prompt_folder: Folder, prepared: PromptsManifest, folder: Folder, teacher: Path
) -> None:
    """Sample the missing files of the recipe's pairs, with the resources of its evaluation.

    The prompts are the first of the epoch of seed 0, so runs of other seeds share them.
    """
    names = list_pair_files(recipe.regression.num_pairs)
    missing = [number for number, name in enumerate(names) if not folder.exists(name)]
    if not missing:
        return
    stream = PromptStream(prompt_folder, prepared, 0, PAIRS_PER_FILE, range(PAIRS_PER_FILE))
    rows = []
    for number in missing:
        first = number * PAIRS_PER_FILE
        spans = stream.sampler.iter_ranges(first, first + PAIRS_PER_FILE, PAIRS_PER_FILE)
        texts = [text for span in spans for text in stream.read_prompts(span).to_pylist()]
        rows.append({"name": names[number], "first": first, "prompts": texts})
    total = len(names) * PAIRS_PER_FILE
    print(f"sampling {len(missing) * PAIRS_PER_FILE} of {total} pairs from the teacher", flush=True)
    options = recipe.evaluation
    files: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        PairActor,
        fn_constructor_args=(PairConfig(recipe, str(teacher), folder.uri),),
        batch_size=1,
        num_cpus=options.cpus_per_process,
        num_gpus=options.gpus_per_process,
        concurrency=min(options.num_processes, len(rows)),
    )
    for _ in iter_rows(files):
        pass
