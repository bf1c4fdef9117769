"""The prompts that models are compared on, as files of a folder: prepared once, and the same for every model."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyarrow as pa

from datasets_prep import evaluation
from datasets_prep.sources import read
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.manifest import DataFile, Manifest
from pipeline.prompts import input_files
from pipeline.prompts.clean import ROWS_PER_CHUNK
from pipeline.prompts.prompt_dataset import write_data_file
from pipeline.recipe import Source
from pipeline.storage import Folder

EXCLUSION, NEGOPT, HPSV2 = "exclusion_pairs.parquet", "negopt_pairs.parquet", "hpsv2.parquet"


class BenchmarksManifest(Manifest):
    """The manifest of benchmark prompts; `negopt` and `hpsv2` are the paths that were given."""

    command = "prepare-benchmarks"
    kind: Literal["benchmarks"] = "benchmarks"
    files: dict[str, DataFile]
    seed: int
    negopt: str | None = None
    hpsv2: str | None = None


def prepare_benchmarks(
    folder: Folder, negopt: str | None, hpsv2: str | None, count: int, seed: int
) -> dict[str, DataFile]:
    """Write the paper's pairs, and of NegOpt's files and HPSv2's folder what is given; returns the manifest's files."""
    tables = {EXCLUSION: evaluation.exclusion_pairs()}
    if negopt:
        tables[NEGOPT] = _with_option_name(
            "--negopt", negopt, evaluation.sample_pairs, list(_read_negopt(negopt)), count, seed
        )
    if hpsv2:
        tables[HPSV2] = _with_option_name("--hpsv2", hpsv2, evaluation.styled_prompts, _read_styles(hpsv2))
    files = {name: write_data_file(folder, name, table) for name, table in tables.items()}
    manifest.write(folder, BenchmarksManifest(files=files, seed=seed, negopt=negopt, hpsv2=hpsv2))
    return files


def _with_option_name(option: str, value: str, make: Callable[..., pa.Table], *arguments: Any) -> pa.Table:
    """Raise an error of the content with the option that named it."""
    try:
        return make(*arguments)
    except ValueError as error:
        raise UserError(f"{option}: {value!r}: {error}") from None


def _read_negopt(files: str) -> Iterator[tuple[str | None, str | None]]:
    for _, found in input_files.find_inputs((Source(path=files),), "--negopt"):
        for each in found:
            for table in read(each.file(), ROWS_PER_CHUNK):
                yield from zip(table["text"].to_pylist(), table["negative"].to_pylist(), strict=True)


def _read_styles(path: str) -> dict[str, bytes]:
    folder = Folder.from_uri(path)
    names = [name for name in folder.list_files() if name.removesuffix(".json") in evaluation.HPSV2_STYLES]
    return {name.removesuffix(".json"): folder.read(name) for name in names}
