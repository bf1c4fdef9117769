"""Exact and near duplicates over a whole corpus: MinHash signatures by chunk, then buckets by band.

Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4. With 20 bands of 6 rows two prompts whose
words overlap by 0.8 (Jaccard, over pairs of neighbouring words) share a bucket with probability 0.998, and by 0.5 with
0.27; candidate pairs are then compared by their words, so sharing a bucket alone removes nothing.
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
_TAGS = r"\U000e0020-\U000e007f"  # tags in the flags of England, Scotland and Wales
_WORD = regex.compile(
    rf"[\p{{So}}\p{{EMod}}][\p{{So}}\p{{EMod}}\p{{M}}{_JOINERS}{_TAGS}]*"
    rf"|[\p{{L}}\p{{M}}\p{{N}}\p{{Sc}}\p{{Sm}}\p{{Co}}\p{{Cn}}#%&@{_JOINERS}--|~]+",
    regex.V1,
)
_PRESENTATION = re.compile("[\ufe0e\ufe0f]")  # variation selectors: as text or as an emoji
_MIX = np.array([pow(0x9E3779B97F4A7C15, power + 1, 2**64) | 1 for power in range(ROWS)], dtype=np.uint64)


def normalise_text(text: str) -> str:
    """Return the words and symbols of a text in lower case, which duplicates share.

    A word is letters with their marks, digits, and signs that distinguish words (`C++`, `C#`, `50%`); an emoji is a
    word. Space, punctuation and separators (`|`, `~`) separate words. A text without words is returned as it is.
    """
    lower = text.lower()
    words = _ASCII_WORD.findall(lower) if text.isascii() else _WORD.findall(_PRESENTATION.sub("", lower))
    return " ".join(words) or " ".join(lower.split())


def extract_shingles(normal: str) -> frozenset[str]:
    """Return pairs of neighbouring words, or a single word itself."""
    words = normal.split()
    return frozenset(map(" ".join, pairwise(words))) if len(words) > 1 else frozenset(words)


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the Jaccard similarity of two sets of shingles."""
    return len(a & b) / len(a | b) if a or b else 1.0


def compute_exact_keys(normals: Sequence[str]) -> np.ndarray:
    """Return uint64 [N], equal for equal texts, and for different ones with a probability of 2^-64."""
    digests = b"".join(blake2b(normal.encode(), digest_size=8).digest() for normal in normals)
    return np.frombuffer(digests, dtype=np.uint64)


def compute_band_keys(normals: Sequence[str]) -> np.ndarray:
    """Return uint64 [N, BANDS]; two texts share the key of a band if all rows of their signatures in it agree."""
    if not normals:
        return np.empty((0, BANDS), dtype=np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_token_sets(
        [list(extract_shingles(n)) for n in normals], BANDS * ROWS, _SEED
    )
    rows = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(normals), BANDS, ROWS)
    keys: np.ndarray = (rows * _MIX).sum(axis=2, dtype=np.uint64)
    return keys


def find_exact_duplicates(keys_N: np.ndarray) -> np.ndarray:
    """Return bool [N], true where an earlier row has the same key."""
    _, first = np.unique(keys_N, return_index=True)
    duplicate = np.ones(len(keys_N), bool)
    duplicate[first] = False
    return duplicate


def find_candidate_pairs(keys_N: np.ndarray) -> np.ndarray:
    """Return int64 [M, 2], pairs of rows with the same key: each row with the first one and with the previous one."""
    order = np.argsort(keys_N, kind="stable")
    sorted_N = keys_N[order]
    starts = np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]) if len(order) else np.empty(0, bool)
    leader = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    again = np.flatnonzero(~starts)
    with_first = np.stack([leader[again], order[again]], axis=1)
    with_last = np.stack([order[again - 1], order[again]], axis=1)
    return np.unique(np.concatenate([with_first, with_last]), axis=0)


def find_near_duplicates(
    bands: Callable[[int], np.ndarray],
    texts: Callable[[np.ndarray], Sequence[str]],
    count: int,
    threshold: float,
    skipped_N: np.ndarray,
) -> np.ndarray:
    """Return bool [N], true where an earlier row is similar, directly or through other similar rows.

    `bands(number)` returns the keys of one band, uint64 [N]; `texts(rows)` the normal forms of some rows. Rows of
    `skipped_N` are ignored. Memory holds one band and the texts of the candidates.
    """
    rows = np.flatnonzero(~skipped_N)
    pairs = [np.empty((0, 2), np.int64)]
    for number in range(BANDS):
        pairs.append(rows[find_candidate_pairs(bands(number)[rows])])
    unique_pairs = np.unique(np.concatenate(pairs), axis=0)
    candidates, indices = np.unique(unique_pairs, return_inverse=True)
    sets = [extract_shingles(text) for text in texts(candidates)]
    parent = np.arange(count)

    def find_root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    for (a, b), (first, second) in zip(unique_pairs.tolist(), indices.reshape(-1, 2).tolist(), strict=True):
        if jaccard(sets[first], sets[second]) >= threshold:
            low, high = sorted((find_root(a), find_root(b)))
            parent[high] = low
    duplicate: np.ndarray = parent != np.arange(count)
    return duplicate
