"""The order in which training sees the prompts, a function of the seed and the row counts of the files.

Positions are counted from the first prompt of the first epoch. Every epoch takes `per_epoch` prompts of each source, in
its own order. A source is read pass after pass: no prompt repeats before all prompts of its source have been seen. If
an epoch takes all prompts of a source, a pass is an epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_INTERLEAVE, _FILES, _ROWS = range(3)  # purposes of random number streams


@dataclass(frozen=True)
class SamplerSource:
    """A source: the number of rows of each file, and how many of all of them an epoch takes."""

    name: str
    rows: tuple[int, ...]
    per_epoch: int

    @cached_property
    def total(self) -> int:
        """Number of prompts."""
        return sum(self.rows)


@dataclass(frozen=True)
class SampleRange:
    """Consecutive positions: the source of each (`source_N`), and each source's offset at the start."""

    first: int
    source_N: np.ndarray
    source_offsets: tuple[int, ...]


@dataclass(frozen=True)
class RowLocations:
    """The locations of a range's prompts: numbers of the source, its file and the row in it; each int64 [N]."""

    source_N: np.ndarray
    file_N: np.ndarray
    row_N: np.ndarray


@dataclass(frozen=True)
class EpochSampler:
    """Shuffles and interleaves sources, epoch by epoch, as a function of the seed and the position."""

    sources: tuple[SamplerSource, ...]
    seed: int

    @property
    def epoch_size(self) -> int:
        """Number of prompts per epoch."""
        return sum(source.per_epoch for source in self.sources)

    def iter_ranges(self, first: int, last: int, size: int) -> Iterator[SampleRange]:
        """Yield the positions `first` to `last` in ranges of at most `size`; a late start costs one interleaving."""
        while first < last:
            epoch, offset = divmod(first, self.epoch_size)
            source_E = self._interleave_sources(epoch)
            counts = np.bincount(source_E[:offset], minlength=len(self.sources))
            end = min(self.epoch_size, offset + last - first)
            for start in range(offset, end, size):
                source_N = source_E[start : min(start + size, end)]
                offsets = zip(self.sources, counts, strict=True)
                source_offsets = tuple(epoch * source.per_epoch + int(count) for source, count in offsets)
                yield SampleRange(epoch * self.epoch_size + start, source_N, source_offsets)
                counts += np.bincount(source_N, minlength=len(self.sources))
            first += end - offset

    def locate_rows(self, span: SampleRange) -> RowLocations:
        """Return the locations of a range's prompts."""
        source_N = span.source_N.astype(np.int64)
        file_N, row_N = np.empty_like(source_N), np.empty_like(source_N)
        for number, offset in enumerate(span.source_offsets):
            is_source_N = source_N == number
            count = int(is_source_N.sum())
            file_N[is_source_N], row_N[is_source_N] = self._locate_in_source(number, offset, count)
        return RowLocations(source_N, file_N, row_N)

    def _interleave_sources(self, epoch: int) -> np.ndarray:
        """Return the source number of each prompt of an epoch, uint8."""
        counts = [source.per_epoch for source in self.sources]
        source_E = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
        if len(counts) > 1:
            self._rng(_INTERLEAVE, epoch).shuffle(source_E)
        return source_E

    def _locate_in_source(self, number: int, source_offset: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return file and row of `count` prompts of a source; the offset is counted over all its passes."""
        source = self.sources[number]
        files, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while count:
            pass_number, offset = divmod(source_offset, source.total)
            order = self._rng(_FILES, number, pass_number).permutation(len(source.rows))
            file_ends = np.cumsum(np.array(source.rows)[order])
            index = int(np.searchsorted(file_ends, offset, side="right"))
            file = int(order[index])
            within = offset - (int(file_ends[index]) - source.rows[file])
            chosen = self._rng(_ROWS, number, pass_number, file).permutation(source.rows[file])[within : within + count]
            files.append(np.full(len(chosen), file))
            rows.append(chosen)
            source_offset, count = source_offset + len(chosen), count - len(chosen)
        return np.concatenate(files), np.concatenate(rows)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *purpose))


def compute_epoch_quotas(totals: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many prompts an epoch takes of each source: the most in these proportions without repetition.

    A weight of 0 takes all of a source, whatever the weights of the others.
    """
    weighted = [total / weight for total, weight in zip(totals, weights, strict=True) if weight]
    scale = min(weighted, default=0.0)
    return [
        min(total, max(1, round(weight * scale))) if weight else total
        for total, weight in zip(totals, weights, strict=True)
    ]
