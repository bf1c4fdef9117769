"""The prepared prompts of a run: manifest, epochs and shards."""

import io
from functools import lru_cache
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from datasets_prep.epoch_sampler import EpochSampler, SamplerSource
from pipeline import manifest
from pipeline.errors import UserError, invalid
from pipeline.hashing import hash_bytes
from pipeline.manifest import DataFile, Manifest
from pipeline.prompts.source_files import SourceFile
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from pipeline.strict_model import StrictModel


class PromptRequest(StrictModel):
    """The inputs that prepared prompts depend on: version of cleaning, recipe settings by name, and source files."""

    cleaning: int
    settings: dict[str, JsonValue]
    files: tuple[SourceFile, ...]
    negative_files: tuple[SourceFile, ...]


class SourceRecord(StrictModel):
    """A source: its prompts, how many of them an epoch takes, and the statistics of its cleaning."""

    prompts: int
    per_epoch: int
    rows: int
    removed: dict[str, int]
    statistics: dict[str, JsonValue]


class PromptsManifest(Manifest):
    """The manifest of prepared prompts. `epoch` is the number of prompts of an epoch."""

    command = "prepare"
    kind: Literal["prepare"] = "prepare"
    recipe: Recipe
    request: PromptRequest
    files: dict[str, DataFile]
    sources: dict[str, SourceRecord]
    prompts: int
    shards: int
    negative_prompts: int
    epoch: int

    def list_shards(self, source: str) -> list[str]:
        """Return the names of a source's shards."""
        return sorted(name for name, file in self.files.items() if file.source == source)

    def build_sampler(self, seed: int) -> EpochSampler:
        """Return the sampler of the prompts' epochs."""
        sources = (
            SamplerSource(name, tuple(self.files[file].rows for file in self.list_shards(name)), source.per_epoch)
            for name, source in sorted(self.sources.items())
        )
        return EpochSampler(tuple(sources), seed)


def load_manifest(folder: Folder) -> PromptsManifest:
    """Return the manifest of prepared prompts after checking the names and sizes of its files.

    Raises:
        UserError: if there is no manifest, or a file is missing or of another size.
    """
    prepared = manifest.read(folder, PromptsManifest)
    for name, expected in prepared.files.items():
        if "/" in name or name in ("", ".", "..") or not name.isprintable():
            raise invalid(f"{folder.uri}/{manifest.NAME}: files", name, "names of files in this folder")
        size = folder.get_size(name)
        if size is None:
            raise UserError(f"{folder.uri}/{name}: missing; the manifest lists it. Run `python -m jobs prepare` again.")
        if size != expected.bytes:
            raise invalid(
                f"{folder.uri}/{name}: size",
                size,
                f"the {expected.bytes} bytes of the manifest",
                "Run `python -m jobs prepare` again.",
            )
    return prepared


def write_data_file(folder: Folder, name: str, table: pa.Table, source: str | None = None) -> DataFile:
    """Write a table as Parquet and return its record."""
    content = folder.write_table(name, table)
    return DataFile(rows=table.num_rows, bytes=len(content), sha256=hash_bytes(content), source=source)


@lru_cache(maxsize=4)
def read_shard(folder: Folder, name: str, sha256: str) -> pa.ChunkedArray:
    """Return a shard's prompts after checking its hash.

    Raises:
        UserError: if its content is not what was prepared.
    """
    content = folder.read(name)
    if hash_bytes(content) != sha256:
        raise UserError(
            f"{folder.uri}/{name}: its content differs from the manifest's hash. Run `python -m jobs prepare` again."
        )
    return pq.read_table(io.BytesIO(content), columns=["prompt"])["prompt"]


def read_first_prompts(folder: Folder) -> list[str]:
    """Return the prompts of the first shard."""
    prepared = load_manifest(folder)
    name = min((file for file in prepared.files if file.startswith("shard-")), default=None)
    if name is None:
        raise UserError(f"{folder.uri}/{manifest.NAME}: lists no shard. Run `python -m jobs prepare` again.")
    texts: list[str] = read_shard(folder, name, prepared.files[name].sha256).to_pylist()
    return texts
