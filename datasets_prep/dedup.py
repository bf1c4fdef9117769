"""Exact and near duplicates over a whole corpus: MinHash signatures a chunk at a time, then buckets a band at a time.

Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4. With 20 bands of 6 rows two prompts whose
words overlap by 0.8 (Jaccard, over pairs of neighbouring words) meet in a band with probability 0.998, and by 0.5 with
0.27; what meets is compared by its words, so a meeting alone removes nothing.
"""

import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import regex
import rensa

BANDS, ROWS = 20, 6
_SEED = 1
_ASCII_WORD = re.compile(r"[a-z0-9#%&+<=>@$]+")
_JOINERS = r"\u200c\u200d"
_TAGS = r"\U000e0020-\U000e007f"  # of the flags of England, Scotland and Wales
_WORD = regex.compile(
    rf"[\p{{So}}\p{{EMod}}][\p{{So}}\p{{EMod}}\p{{M}}{_JOINERS}{_TAGS}]*"
    rf"|[\p{{L}}\p{{M}}\p{{N}}\p{{Sc}}\p{{Sm}}\p{{Co}}\p{{Cn}}#%&@{_JOINERS}--|~]+",
    regex.V1,
)
_PRESENTATION = re.compile("[\ufe0e\ufe0f]")  # as text or as a picture
_MIX = np.array([pow(0x9E3779B97F4A7C15, power + 1, 2**64) | 1 for power in range(ROWS)], dtype=np.uint64)


def normal_form(text: str) -> str:
    """Return what duplicates share: words and symbols, in lower case.

    A word is letters with the marks that belong to them, digits, and signs that tell words apart (`C++`, `C#`, `50%`);
    an emoji is a word. Space, punctuation and separators (`|`, `~`) part words. A text without any stands for itself.
    """
    lower = text.lower()
    words = _ASCII_WORD.findall(lower) if text.isascii() else _WORD.findall(_PRESENTATION.sub("", lower))
    return " ".join(words) or " ".join(lower.split())


def shingles(normal: str) -> frozenset[str]:
    """Pairs of neighbouring words; a single word stands for itself."""
    words = normal.split()
    return frozenset(map(" ".join, pairwise(words))) if len(words) > 1 else frozenset(words)


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets of words."""
    return len(a & b) / len(a | b) if a or b else 1.0


def exact_keys(normals: Sequence[str]) -> np.ndarray:
    """uint64 [N]; equal for equal texts, and for others with a probability of 2^-64."""
    digests = b"".join(blake2b(normal.encode(), digest_size=8).digest() for normal in normals)
    return np.frombuffer(digests, dtype=np.uint64)


def band_keys(normals: Sequence[str]) -> np.ndarray:
    """uint64 [N, BANDS]; two texts share a key of a band where all its rows of their signatures agree."""
    if not normals:
        return np.empty((0, BANDS), dtype=np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_token_sets([list(shingles(n)) for n in normals], BANDS * ROWS, _SEED)
    rows = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(normals), BANDS, ROWS)
    keys: np.ndarray = (rows * _MIX).sum(axis=2, dtype=np.uint64)
    return keys


def repeats(keys_N: np.ndarray) -> np.ndarray:
    """Bool [N]: true where an earlier row has the same key."""
    _, first = np.unique(keys_N, return_index=True)
    repeated = np.ones(len(keys_N), bool)
    repeated[first] = False
    return repeated


def meetings(keys_N: np.ndarray) -> np.ndarray:
    """int64 [M, 2]: rows that share a key, earlier first: each with the first of them and with the one before."""
    order = np.argsort(keys_N, kind="stable")
    sorted_N = keys_N[order]
    starts = np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]) if len(order) else np.empty(0, bool)
    leader = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    again = np.flatnonzero(~starts)
    with_first = np.stack([leader[again], order[again]], axis=1)
    with_last = np.stack([order[again - 1], order[again]], axis=1)
    return np.unique(np.concatenate([with_first, with_last]), axis=0)


def near_repeats(
    bands: Callable[[int], np.ndarray],
    texts: Callable[[np.ndarray], Sequence[str]],
    count: int,
    threshold: float,
    skipped_N: np.ndarray,
) -> np.ndarray:
    """Bool [N]: true where an earlier row that is alike, or like one that is alike, stands for this one.

    `bands(number)` gives the keys of one band, uint64 [N]; `texts(rows)` the normal forms of some rows. Rows of
    `skipped_N` are left out. Memory is one band and the texts of the rows that meet.
    """
    own = np.flatnonzero(~skipped_N)
    pairs = [np.empty((0, 2), np.int64)]
    for number in range(BANDS):
        pairs.append(own[meetings(bands(number)[own])])
    every = np.unique(np.concatenate(pairs), axis=0)
    involved, places = np.unique(every, return_inverse=True)
    sets = [shingles(text) for text in texts(involved)]
    parent = np.arange(count)

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    for (a, b), (first, second) in zip(every.tolist(), places.reshape(-1, 2).tolist(), strict=True):
        if jaccard(sets[first], sets[second]) >= threshold:
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    repeated: np.ndarray = parent != np.arange(count)
    return repeated
