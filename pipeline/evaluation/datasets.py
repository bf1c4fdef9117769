"""The datasets of a run, as MLflow shows them: prompts, negative prompts, and the prompts of the evaluation."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline import manifest
from pipeline.evaluation.plan import EXCLUSION_SET
from pipeline.evaluation.suites import build_suite
from pipeline.hashing import hash_json
from pipeline.logged_models import DIGEST
from pipeline.manifest import DataFile
from pipeline.prompts.negative_sampler import NEGATIVES
from pipeline.prompts.prepare_benchmarks import EXCLUSION, HPSV2, NEGOPT, BenchmarksManifest
from pipeline.prompts.prompt_dataset import PromptsManifest
from pipeline.recipe import BUNDLED, Recipe
from pipeline.redaction import redact
from pipeline.storage import Folder

TRAINING, NEGATIVE, EVALUATION = "training", "negatives", "evaluation"  # contexts
FILES = {"hpsv2": HPSV2, "negopt": NEGOPT, EXCLUSION_SET: EXCLUSION}


@dataclass(frozen=True)
class RunDataset:
    """A dataset of a run: its name, the hash of its content, its address, what it is for, and its number of rows."""

    name: str
    sha256: str
    uri: str
    context: str
    rows: int

    @property
    def digest(self) -> str:
        """The first characters of the hash, which MLflow shows beside the name."""
        return self.sha256[:DIGEST]

    def to_input(self) -> DatasetInput:
        """Return MLflow's record."""
        kind = "s3" if self.uri.startswith("s3://") else "local"
        source, profile = json.dumps({"uri": redact(self.uri)}), json.dumps({"num_rows": self.rows})
        dataset = Dataset(self.name, self.digest, kind, source, profile=profile)
        return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, self.context)])


def list_training_datasets(folder: Folder, prompts: PromptsManifest) -> Iterator[RunDataset]:
    """Yield the prompts of each source, and the negative prompts; hashes are those of the manifest."""
    for source in sorted(prompts.sources):
        files = {name: prompts.files[name] for name in prompts.list_shards(source)}
        rows = sum(file.rows for file in files.values())
        yield RunDataset(f"prompts {source}", _hash_files(files), folder.uri, TRAINING, rows)
    negatives = prompts.files[NEGATIVES]
    yield RunDataset("negative prompts", negatives.sha256, f"{folder.uri}/{NEGATIVES}", NEGATIVE, negatives.rows)


def list_benchmarks(recipe: Recipe, prompt_folder: Folder) -> Iterator[RunDataset]:
    """Yield the files of benchmark prompts that a recipe's evaluation reads."""
    if not recipe.evaluation.prompt_sets or recipe.teacher == BUNDLED:
        return
    given = recipe.evaluation.benchmarks
    folder = Folder.from_uri(given) if given else prompt_folder.parent / "benchmarks"
    files = manifest.read(folder, BenchmarksManifest).files
    for name in recipe.evaluation.prompt_sets:
        if file := files.get(FILES[name]):
            yield RunDataset(name, file.sha256, f"{folder.uri}/{FILES[name]}", EVALUATION, file.rows)


def get_evaluation_dataset(recipe: Recipe, prompt_folder: Folder) -> RunDataset:
    """Return all prompts and seeds of an evaluation as one dataset: scores on the same digest can be compared."""
    options, suite = recipe.evaluation, build_suite(recipe)
    sets = [samples for samples in suite.build_prompt_sets(prompt_folder) if samples]
    names = [*dict.fromkeys(samples[0].set.partition("/")[0] for samples in sets)]
    content: list[object] = [[asdict(sample) for sample in samples] for samples in sets]
    rows = sum(len(samples) for samples in sets)
    if suite.pairs:
        names, rows = [*names, EXCLUSION_SET], rows + len(suite.pairs) * options.exclusion_seeds
        content += [[asdict(pair) for pair in suite.pairs], options.exclusion_seeds, options.seed]
    uri = options.benchmarks or prompt_folder.uri
    return RunDataset(f"evaluation on {', '.join(names)}", hash_json(content), uri, EVALUATION, rows)


def _hash_files(files: Mapping[str, DataFile]) -> str:
    return hash_json({name: file.sha256 for name, file in files.items()})
