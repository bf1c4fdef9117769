"""Preparation of benchmark prompts, which are the same for every model."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pyarrow as pa

from datasets_prep import benchmark_prompts
from datasets_prep.sources import read_tables
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.manifest import DataFile, Manifest
from pipeline.prompts.file_cleaning import ROWS_PER_CHUNK
from pipeline.prompts.prompt_dataset import write_data_file
from pipeline.prompts.source_files import find_source_files
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
    """Write the paper's pairs, and those of NegOpt and HPSv2 that are given; return the manifest's files."""
    tables = {EXCLUSION: benchmark_prompts.build_exclusion_pairs()}
    if negopt:
        tables[NEGOPT] = _name_option_in_errors(
            "--negopt", negopt, benchmark_prompts.sample_pairs, list(_read_pairs(negopt)), count, seed
        )
    if hpsv2:
        tables[HPSV2] = _name_option_in_errors(
            "--hpsv2", hpsv2, benchmark_prompts.parse_styled_prompts, _read_styles(hpsv2)
        )
    files = {name: write_data_file(folder, name, table) for name, table in tables.items()}
    manifest.write(folder, BenchmarksManifest(files=files, seed=seed, negopt=negopt, hpsv2=hpsv2))
    return files


def _name_option_in_errors(option: str, value: str, make: Callable[..., pa.Table], *arguments: Any) -> pa.Table:
    """Call `make`, and raise its error with the option that the data came from."""
    try:
        return make(*arguments)
    except ValueError as error:
        raise UserError(f"{option}: {value!r}: {error}") from None


def _read_pairs(files: str) -> Iterator[tuple[str | None, str | None]]:
    for _, source_files in find_source_files((Source(path=files),), "--negopt"):
        for file in source_files:
            for table in read_tables(file.to_prompt_file(), ROWS_PER_CHUNK):
                yield from zip(table["text"].to_pylist(), table["negative"].to_pylist(), strict=True)


def _read_styles(uri: str) -> dict[str, bytes]:
    folder = Folder.from_uri(uri)
    names = [name for name in folder.list_files() if name.removesuffix(".json") in benchmark_prompts.HPSV2_STYLES]
    return {name.removesuffix(".json"): folder.read(name) for name in names}
