"""A cache of what is computed from texts, bounded in bytes."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class TextCache(Generic[Value]):
    """A cache by text that drops the least recently used entries; it is not safe for threads.

    `compute` is called with one text at a time, so that a value does not depend on the texts beside it.
    """

    def __init__(self, compute: Callable[[str], Value], measure: Callable[[Value], int], max_bytes: int) -> None:
        self._compute = compute
        self._entries: LRUCache[str, Value] = LRUCache(max_bytes, measure)
        self._max_bytes, self._measure = max_bytes, measure
        self._hits, self._misses = 0, 0

    @property
    def nbytes(self) -> int:
        """The bytes of all entries."""
        return int(self._entries.currsize)

    def get(self, texts: Sequence[str]) -> list[Value]:
        """Return the values of texts; each distinct text is computed at most once."""
        values: dict[str, Value] = {}
        for text in dict.fromkeys(texts):
            found = self._entries.get(text)
            self._hits, self._misses = self._hits + (found is not None), self._misses + (found is None)
            values[text] = self._compute_and_keep(text) if found is None else found
        return [values[text] for text in texts]

    def take_counts(self) -> dict[str, int]:
        """Return the hits and misses since the last call."""
        counts = {"hit": self._hits, "miss": self._misses}
        self._hits, self._misses = 0, 0
        return counts

    def _compute_and_keep(self, text: str) -> Value:
        value = self._compute(text)
        if self._measure(value) <= self._max_bytes:
            self._entries[text] = value
        return value
