"""Cleaning of one chunk of raw prompts: rows in are rows out and rows removed."""

from typing import Any

import numpy as np
import pyarrow as pa

from datasets_prep.blocklist import find_blocking_terms
from datasets_prep.cleaning import clean_with_changes
from datasets_prep.cleaning_stats import CleaningStats
from datasets_prep.dedup import BANDS, compute_band_keys, compute_exact_keys, normalise_text
from datasets_prep.filters import FILTERS, FIRST_TOKEN_FILTER, SEXUAL_ABOUT_MINORS, CountTokens, Filters

__all__ = ["BAND_COLUMNS", "SCHEMA", "CleaningStats", "clean_table"]

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
"""The columns of a clean chunk: `row` is the prompt's row in its file, `key` and the bands are keys of `dedup`."""


def clean_table(
    raw: pa.Table, first_row: int, filters: Filters, count_tokens: CountTokens
) -> tuple[pa.Table, CleaningStats]:
    """Clean and filter a table of `sources.SCHEMA`, and add deduplication keys; `first_row` numbers its rows."""
    stats = CleaningStats(raw.num_rows)
    table = _select_readable(raw, first_row, stats)
    for reason, removes in FILTERS.items():
        if reason == FIRST_TOKEN_FILTER:
            table = table.append_column("tokens", pa.array(count_tokens(table["prompt"].to_pylist()), pa.int32()))
        if table.num_rows:
            table = _drop_rows(table, reason, removes(table, filters), stats)
    stats.set_distributions(table)
    normals = [normalise_text(text) for text in table["prompt"].to_pylist()]
    table = table.append_column("key", pa.array(compute_exact_keys(normals)))
    keys = compute_band_keys(normals)
    for number, name in enumerate(BAND_COLUMNS):
        table = table.append_column(name, pa.array(keys[:, number]))
    return table.select(SCHEMA.names).cast(SCHEMA), stats


def _select_readable(raw: pa.Table, first_row: int, stats: CleaningStats) -> pa.Table:
    """Return the rows that have a text, cleaned."""
    table = raw.append_column("row", pa.array(np.arange(first_row, first_row + raw.num_rows)))
    stats.count_unreadable(*_select_valid(table, "problem"))
    table = table.filter(table["problem"].is_null())
    texts = _clean_texts(table["text"].to_pylist(), stats)
    empty = np.fromiter((not text for text in texts), bool, len(texts))
    stats.count_removed(
        "empty", [text for text, is_empty in zip(table["text"].to_pylist(), empty, strict=True) if is_empty]
    )
    return table.append_column("prompt", pa.array(texts, pa.string())).filter(pa.array(~empty))


def _clean_texts(raw: list[str], stats: CleaningStats) -> list[str]:
    """Return the cleaned texts, and count the changes of each rule."""
    texts: list[str] = []
    changed: dict[str, list[tuple[str, str]]] = {}
    for text in raw:
        result, changes = clean_with_changes(text)
        texts.append(result)
        for rule, before, after in changes:
            changed.setdefault(rule, []).append((before, after))
    for rule, pairs in changed.items():
        stats.count_changed(rule, pairs)
    return texts


def _select_valid(table: pa.Table, column: str) -> tuple[list[Any], list[int]]:
    valid = table.filter(table[column].is_valid())
    return valid[column].to_pylist(), valid["row"].to_pylist()


def _drop_rows(table: pa.Table, reason: str, removed: np.ndarray, stats: CleaningStats) -> pa.Table:
    if not removed.any():
        return table
    texts = table.filter(pa.array(removed))["prompt"].to_pylist()
    stats.count_removed(reason, texts)
    if reason == SEXUAL_ABOUT_MINORS:
        stats.count_blocked((find_blocking_terms(text), text) for text in texts)
    return table.filter(pa.array(~removed))
