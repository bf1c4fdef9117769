"""The order in which training sees the prompts: a function of the seed and of the files' row counts alone.

Positions are counted from the first prompt of the first epoch. Every epoch takes `per_epoch` prompts of each source, in
an order of its own, and every source is gone through pass after pass: no prompt comes a second time before all of its
source came once. Where all of a source belong to an epoch, a pass is an epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_INTERLEAVE, _FILES, _ROWS = range(3)  # what a stream of random numbers is for


@dataclass(frozen=True)
class SamplerSource:
    """`rows` are of each file; an epoch takes `per_epoch` of all of them."""

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
class Rows:
    """The rows of a range's prompts: number of the source, of its file, and row in it; each int64 [N]."""

    source_N: np.ndarray
    file_N: np.ndarray
    row_N: np.ndarray


@dataclass(frozen=True)
class EpochSampler:
    """Shuffles and interleaves sources, epoch by epoch, as a function of the seed and the position."""

    sources: tuple[SamplerSource, ...]
    seed: int

    @property
    def epoch(self) -> int:
        """Number of prompts per epoch."""
        return sum(source.per_epoch for source in self.sources)

    def ranges(self, first: int, last: int, size: int) -> Iterator[SampleRange]:
        """Positions `first` to `last` in ranges of at most `size`. Starting late costs nothing but one interleaving."""
        while first < last:
            epoch, offset = divmod(first, self.epoch)
            which_E = self._interleaved(epoch)
            counts = np.bincount(which_E[:offset], minlength=len(self.sources))
            end = min(self.epoch, offset + last - first)
            for start in range(offset, end, size):
                part = which_E[start : min(start + size, end)]
                done = zip(self.sources, counts, strict=True)
                source_offsets = tuple(epoch * source.per_epoch + int(count) for source, count in done)
                yield SampleRange(epoch * self.epoch + start, part, source_offsets)
                counts += np.bincount(part, minlength=len(self.sources))
            first += end - offset

    def locate(self, span: SampleRange) -> Rows:
        """Return the rows of a range's prompts."""
        source_N = span.source_N.astype(np.int64)
        file_N, row_N = np.empty_like(source_N), np.empty_like(source_N)
        for number, begin in enumerate(span.source_offsets):
            own_N = source_N == number
            file_N[own_N], row_N[own_N] = self._run(number, begin, int(own_N.sum()))
        return Rows(source_N, file_N, row_N)

    def _interleaved(self, epoch: int) -> np.ndarray:
        """Return the source number of each prompt of an epoch, uint8."""
        counts = [source.per_epoch for source in self.sources]
        which = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
        if len(counts) > 1:
            self._rng(_INTERLEAVE, epoch).shuffle(which)
        return which

    def _run(self, number: int, begin: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """File and row of `count` prompts of a source, from the `begin`-th of all its passes on."""
        source = self.sources[number]
        files, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while count:
            turn, offset = divmod(begin, source.total)
            order = self._rng(_FILES, number, turn).permutation(len(source.rows))
            ends = np.cumsum(np.array(source.rows)[order])
            place = int(np.searchsorted(ends, offset, side="right"))
            file = int(order[place])
            within = offset - (int(ends[place]) - source.rows[file])
            taken = self._rng(_ROWS, number, turn, file).permutation(source.rows[file])[within : within + count]
            files.append(np.full(len(taken), file))
            rows.append(taken)
            begin, count = begin + len(taken), count - len(taken)
        return np.concatenate(files), np.concatenate(rows)

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *what))


def epoch_quotas(totals: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return the prompts that an epoch takes of each source: the most in these proportions, none twice.

    A weight of 0 stands for all of a source, whatever the others have.
    """
    weighted = [total / weight for total, weight in zip(totals, weights, strict=True) if weight]
    most = min(weighted, default=0.0)
    return [
        min(total, max(1, round(weight * most))) if weight else total
        for total, weight in zip(totals, weights, strict=True)
    ]
