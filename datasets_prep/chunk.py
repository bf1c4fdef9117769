"""From raw prompts to clean ones, a chunk at a time, with an account: rows in are rows out and rows removed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from datasets_prep.cleaning import clean
from datasets_prep.dedup import BANDS, band_keys, exact_keys, normal_form
from datasets_prep.filters import FILTERS, MINORS, CountTokens, Filters

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

SAMPLES = 8
TOKEN_EDGES = (0, 5, 10, 15, 20, 30, 40, 50, 60, 77, 120, 200)
SCORE_EDGES = tuple(np.arange(0, 10.5, 0.5).tolist())


@dataclass
class Account:
    """What became of rows. `samples` are the same few whatever the order in which accounts are added up.

    Of what is blocked as sexual about minors none is shown.
    """

    rows: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=lambda: [0] * len(TOKEN_EDGES))
    scores: list[int] = field(default_factory=lambda: [0] * len(SCORE_EDGES))

    @property
    def kept(self) -> int:
        return self.rows - self.removed.total()

    def remove(self, reason: str, texts: Sequence[str]) -> None:
        if len(texts):
            self.removed[reason] += len(texts)
            shown = [] if reason == MINORS else texts
            self.samples[reason] = _fewest([*self.samples.get(reason, []), *shown])

    def add(self, other: "Account") -> None:
        self.rows += other.rows
        self.removed.update(other.removed)
        for reason, texts in other.samples.items():
            self.samples[reason] = _fewest([*self.samples.get(reason, []), *texts])
        self.tokens = [a + b for a, b in zip(self.tokens, other.tokens, strict=True)]
        self.scores = [a + b for a, b in zip(self.scores, other.scores, strict=True)]

    def measure(self, table: pa.Table) -> None:
        """The distributions of what was kept."""
        self.tokens = _histogram(table["tokens"].to_numpy(), TOKEN_EDGES)
        self.scores = _histogram(table["aesthetic"].drop_null().to_numpy(), SCORE_EDGES)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "kept": self.kept,
            "removed": dict(self.removed),
            "samples": self.samples,
            "tokens": self.tokens,
            "scores": self.scores,
        }

    @staticmethod
    def of(record: dict[str, Any]) -> "Account":
        return Account(
            record["rows"], Counter(record["removed"]), record["samples"], record["tokens"], record["scores"]
        )


def _fewest(texts: Sequence[str]) -> list[str]:
    """Some of the texts, the same of any order: those with the lowest hashes."""
    cut = {text[:200] for text in texts}
    return sorted(cut, key=lambda text: blake2b(text.encode(errors="replace"), digest_size=8).digest())[:SAMPLES]


def _histogram(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """How many values are at least each edge and below the next."""
    places = np.searchsorted(np.asarray(edges), values, side="right") - 1
    return np.bincount(np.clip(places, 0, None), minlength=len(edges))[: len(edges)].tolist()


def process(raw: pa.Table, first_row: int, filters: Filters, count_tokens: CountTokens) -> tuple[pa.Table, Account]:
    """Clean, filter and sign a table of `sources.SCHEMA`, whose first row is `first_row` of its file."""
    account = Account(raw.num_rows)
    table = _readable(raw, first_row, account)
    table = table.append_column("tokens", pa.array(count_tokens(table["prompt"].to_pylist()), pa.int32()))
    for reason, removes in FILTERS.items():
        if table.num_rows:
            table = _without(table, reason, removes(table, filters), account)
    account.measure(table)
    normals = [normal_form(text) for text in table["prompt"].to_pylist()]
    table = table.append_column("key", pa.array(exact_keys(normals)))
    keys = band_keys(normals)
    for number, name in enumerate(BAND_COLUMNS):
        table = table.append_column(name, pa.array(keys[:, number]))
    return table.select(SCHEMA.names).cast(SCHEMA), account


def _readable(raw: pa.Table, first_row: int, account: Account) -> pa.Table:
    """The rows that have a text, cleaned."""
    table = raw.append_column("row", pa.array(np.arange(first_row, first_row + raw.num_rows)))
    for problem, row in zip(*_valid(table, "problem"), strict=True):
        account.remove("unreadable", [f"row {row}: {problem}"])
    table = table.filter(table["problem"].is_null())
    texts = [clean(text) for text in table["text"].to_pylist()]
    empty = np.fromiter((not text for text in texts), bool, len(texts))
    account.remove("empty", [text for text, none in zip(table["text"].to_pylist(), empty, strict=True) if none])
    return table.append_column("prompt", pa.array(texts, pa.string())).filter(pa.array(~empty))


def _valid(table: pa.Table, column: str) -> tuple[list[Any], list[int]]:
    own = table.filter(table[column].is_valid())
    return own[column].to_pylist(), own["row"].to_pylist()


def _without(table: pa.Table, reason: str, removed: np.ndarray, account: Account) -> pa.Table:
    if not removed.any():
        return table
    account.remove(reason, table.filter(pa.array(removed))["prompt"].to_pylist())
    return table.filter(pa.array(~removed))
