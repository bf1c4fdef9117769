"""From a source of prompts to Parquet shards and the negative-prompt corpus."""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep import negatives
from datasets_prep.shapes import prompts as world
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.recipe import EMBEDDED, Recipe, dump
from pipeline.storage import Folder

SCHEMA = pa.schema([("index", pa.int64()), ("prompt", pa.string())])
NEGATIVES = "negatives.parquet"


def prepare(recipe: Recipe, folder: Folder) -> dict[str, object]:
    """Write `shard-NNNNN.parquet`, `negatives.parquet` and the manifest; returns the manifest's counts."""
    prompts = list(_prompts(recipe))
    if len(prompts) < recipe.train.batch_size:
        raise UserError(
            f"prompts.source: {len(prompts)} prompts do not fill one batch of {recipe.train.batch_size} "
            "(train.batch_size)"
        )
    files = {name: _write(folder, name, table) for name, table in _shards(prompts, recipe.prompts.rows_per_shard)}
    corpus = negatives.corpus(_negative_texts(recipe))
    files[NEGATIVES] = _write(folder, NEGATIVES, corpus)
    counts = {"prompts": len(prompts), "shards": len(files) - 1, "negative_prompts": corpus.num_rows}
    manifest.write(folder, "prepare", recipe=dump(recipe), source=recipe.prompts.source, files=files, **counts)
    return counts


def _prompts(recipe: Recipe) -> Iterator[str]:
    source = recipe.prompts.source
    if source == EMBEDDED:
        return world.sample_prompts(recipe.prompts.count, recipe.seed)
    file = Path(source)
    if not file.is_file():
        raise UserError(f'prompts.source: {source!r} is no file; allowed: a text file, or "{EMBEDDED}"')
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"prompts.source: {source!r} is not UTF-8 text (byte {error.start})") from None
    return _repeated([line for line in lines if line], recipe.train.batch_size)


def _repeated(prompts: list[str], least: int) -> Iterator[str]:
    """A list shorter than one batch is repeated to fill it."""
    rounds = -(-least // len(prompts)) if prompts else 0
    return iter(prompts * max(1, rounds))


def _negative_texts(recipe: Recipe) -> Iterator[str]:
    if recipe.prompts.source == EMBEDDED:
        return world.sample_negatives(recipe.prompts.negative_draws, recipe.seed)
    return iter(negatives.COMMON_TERMS)


def _shards(prompts: list[str], rows: int) -> Iterator[tuple[str, pa.Table]]:
    for number, first in enumerate(range(0, len(prompts), rows)):
        chunk = prompts[first : first + rows]
        table = pa.table({"index": range(first, first + len(chunk)), "prompt": chunk}, schema=SCHEMA)
        yield f"shard-{number:05d}.parquet", table


def _write(folder: Folder, name: str, table: pa.Table) -> dict[str, object]:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    content = buffer.getvalue()
    folder.write(name, content)
    return {"rows": table.num_rows, "bytes": len(content), "sha256": manifest.file_hash(content)}
