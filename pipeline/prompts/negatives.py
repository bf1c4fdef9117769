"""Negative prompts in training: each worker holds the corpus and samples from it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep.negatives import contradicts
from pipeline.prompts.prepare import NEGATIVES
from pipeline.storage import Folder

_MAX_REDRAWS = 16


@dataclass(frozen=True)
class NegativeSampler:
    """Samples a negative for each prompt, by weight, from (seed, step, index in the global batch)."""

    texts: list[str]
    cumulative: np.ndarray
    avoid_contradictions: bool

    @staticmethod
    def read(folder: Folder, *, avoid_contradictions: bool) -> "NegativeSampler":
        """Read the corpus of a prepared folder."""
        table = pq.read_table(io.BytesIO(folder.read(NEGATIVES)))
        return NegativeSampler.from_table(table, avoid_contradictions=avoid_contradictions)

    @staticmethod
    def from_table(corpus: pa.Table, *, avoid_contradictions: bool) -> "NegativeSampler":
        """`corpus` is of `datasets_prep.negatives`."""
        weights = corpus["weight"].to_numpy().astype(np.float64)
        return NegativeSampler(
            corpus["negative_prompt"].to_pylist(), np.cumsum(weights / weights.sum()), avoid_contradictions
        )

    def draw(
        self, prompts: Sequence[str], seed: int, step: int, sample_indices: Sequence[int], *, one: bool = False
    ) -> list[str]:
        """Return a negative for each prompt; with `one`, all of them get the same."""
        if one:
            return [self._draw_one(prompts, np.random.default_rng((seed, step)))] * len(prompts)
        pairs = zip(prompts, sample_indices, strict=True)
        return [self._draw_one([prompt], np.random.default_rng((seed, step, index))) for prompt, index in pairs]

    def _draw_one(self, prompts: Sequence[str], rng: np.random.Generator) -> str:
        """Sample a negative; one that contradicts the prompt is sampled again, a bounded number of times."""
        for _ in range(_MAX_REDRAWS):
            text = self.texts[min(int(np.searchsorted(self.cumulative, rng.random())), len(self.texts) - 1)]
            if not (self.avoid_contradictions and any(contradicts(prompt, text) for prompt in prompts)):
                break
        return text
