"""Cleaning of one chunk of raw prompts: rows in are rows out and rows removed."""

from typing import Any

import numpy as np
import pyarrow as pa

from datasets_prep.cleaning import cleaned
from datasets_prep.cleaning_stats import CleaningStats
from datasets_prep.dedup import BANDS, band_keys, exact_keys, normal_form
from datasets_prep.filters import FILTERS, FIRST_BY_TOKENS, MINORS, CountTokens, Filters
from datasets_prep.terms import evidence

__all__ = ["BAND_COLUMNS", "SCHEMA", "CleaningStats", "process"]

BAND_COLUMNS = tuple(f"band_{number:02d}" for number in range(BANDS))
SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("tokens", pa.int32()),
        ("aesthetic", pa.float32()),
        ("row", pa.int64()),
        ("key", pa.uint64()),
        *((name, pa.uint64()) for name in BAND_COLUMNS),
    ]
)
"""`row` is the prompt's place in its file, `key` and the bands are of `dedup`."""


def process(
    raw: pa.Table, first_row: int, filters: Filters, count_tokens: CountTokens
) -> tuple[pa.Table, CleaningStats]:
    """Clean, filter and sign a table of `sources.SCHEMA`, whose first row is `first_row` of its file."""
    account = CleaningStats(raw.num_rows)
    table = _readable(raw, first_row, account)
    for reason, removes in FILTERS.items():
        if reason == FIRST_BY_TOKENS:
            table = table.append_column("tokens", pa.array(count_tokens(table["prompt"].to_pylist()), pa.int32()))
        if table.num_rows:
            table = _without(table, reason, removes(table, filters), account)
    account.measure(table)
    normals = [normal_form(text) for text in table["prompt"].to_pylist()]
    table = table.append_column("key", pa.array(exact_keys(normals)))
    keys = band_keys(normals)
    for number, name in enumerate(BAND_COLUMNS):
        table = table.append_column(name, pa.array(keys[:, number]))
    return table.select(SCHEMA.names).cast(SCHEMA), account


def _readable(raw: pa.Table, first_row: int, account: CleaningStats) -> pa.Table:
    """Return the rows that have a text, cleaned."""
    table = raw.append_column("row", pa.array(np.arange(first_row, first_row + raw.num_rows)))
    account.refuse(*_valid(table, "problem"))
    table = table.filter(table["problem"].is_null())
    texts = _cleaned(table["text"].to_pylist(), account)
    empty = np.fromiter((not text for text in texts), bool, len(texts))
    account.remove("empty", [text for text, none in zip(table["text"].to_pylist(), empty, strict=True) if none])
    return table.append_column("prompt", pa.array(texts, pa.string())).filter(pa.array(~empty))


def _cleaned(raw: list[str], account: CleaningStats) -> list[str]:
    """Return the cleaned texts, and count the changes of each rule."""
    texts: list[str] = []
    changed: dict[str, list[tuple[str, str]]] = {}
    for text in raw:
        result, changes = cleaned(text)
        texts.append(result)
        for rule, before, after in changes:
            changed.setdefault(rule, []).append((before, after))
    for rule, pairs in changed.items():
        account.change(rule, pairs)
    return texts


def _valid(table: pa.Table, column: str) -> tuple[list[Any], list[int]]:
    own = table.filter(table[column].is_valid())
    return own[column].to_pylist(), own["row"].to_pylist()


def _without(table: pa.Table, reason: str, removed: np.ndarray, account: CleaningStats) -> pa.Table:
    if not removed.any():
        return table
    texts = table.filter(pa.array(removed))["prompt"].to_pylist()
    account.remove(reason, texts)
    if reason == MINORS:
        account.block((evidence(text), text) for text in texts)
    return table.filter(pa.array(~removed))
