"""A prepared folder of prompts, read: its manifest, its order, its shards."""

import hashlib
import io
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep.epoch_sampler import EpochSampler, SamplerSource
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.storage import Folder

FILE, SOURCE = {"bytes": int, "rows": int, "sha256": str}, {"of_an_epoch": int}  # of a manifest


def check(folder: Folder) -> dict[str, Any]:
    """Return the manifest of prepared prompts after checking that its files exist."""
    record = manifest.read(folder, "prepare")
    where = f"{folder.uri}/{manifest.NAME}"
    for name, expected in record["files"].items():
        manifest.require(expected, FILE, f"{where}: files: {name!r}")
        if "/" in name or name in ("", ".", "..") or not name.isprintable():
            raise UserError(f"{where}: {name!r} is no file of this folder; allowed: names alone")
        size = folder.size(name)
        if size is None:
            raise UserError(f"{folder.uri}/{name}: missing; the manifest lists it; run `python -m jobs prepare` again")
        if size != expected["bytes"]:
            raise UserError(
                f"{folder.uri}/{name}: {size} bytes that differ from the {expected['bytes']} in the manifest; "
                "run `python -m jobs prepare` again"
            )
    for name, own in record["sources"].items():
        manifest.require(own, SOURCE, f"{where}: sources: {name!r}")
    return record


def epoch_sampler_of(record: dict[str, Any], seed: int) -> EpochSampler:
    """Return the sampler of a manifest's prompts."""
    return EpochSampler(
        tuple(
            SamplerSource(
                name, tuple(record["files"][file]["rows"] for file in shards_of(record, name)), own["of_an_epoch"]
            )
            for name, own in sorted(record["sources"].items())
        ),
        seed,
    )


def shards_of(record: dict[str, Any], source: str) -> list[str]:
    """Return the shards of a source."""
    return sorted(name for name, file in record["files"].items() if file.get("source") == source)


@lru_cache(maxsize=4)
def shard(folder: Folder, name: str, sha256: str) -> pa.ChunkedArray:
    """Return a shard's prompts after checking its hash.

    Raises:
        UserError: where its content is not what was prepared.
    """
    content = folder.read(name)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{folder.uri}/{name}: its content differs from the manifest's; run `python -m jobs prepare` again"
        )
    return pq.read_table(io.BytesIO(content), columns=["prompt"])["prompt"]


def first_prompts(folder: Folder) -> list[str]:
    """Return the prompts of the first shard."""
    record = check(folder)
    name = min((file for file in record["files"] if file.startswith("shard-")), default=None)
    if name is None:
        raise UserError(f"{folder.uri}/{manifest.NAME}: lists no shard; run `python -m jobs prepare` again")
    texts: list[str] = shard(folder, name, record["files"][name]["sha256"]).to_pylist()
    return texts
