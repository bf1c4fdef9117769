"""Sampling of negative prompts in training; each worker holds the whole corpus."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datasets_prep.negative_corpus import contradicts
from pipeline.storage import Folder

NEGATIVES = "negatives.parquet"  # in a prepared folder
MAX_RESAMPLES = 16


@dataclass(frozen=True)
class NegativeSampler:
    """Samples a negative for each prompt by weight, as a function of seed, step and the prompt's index in the batch."""

    texts: list[str]
    cumulative: np.ndarray
    avoid_contradictions: bool

    @staticmethod
    def read(folder: Folder, *, avoid_contradictions: bool) -> "NegativeSampler":
        """Read the corpus of a prepared folder."""
        table = folder.read_table(NEGATIVES)
        return NegativeSampler.from_table(table, avoid_contradictions=avoid_contradictions)

    @staticmethod
    def from_table(corpus: pa.Table, *, avoid_contradictions: bool) -> "NegativeSampler":
        """Return the sampler of a corpus of `datasets_prep.negative_corpus`."""
        weights = corpus["weight"].to_numpy().astype(np.float64)
        return NegativeSampler(
            corpus["negative_prompt"].to_pylist(), np.cumsum(weights / weights.sum()), avoid_contradictions
        )

    def sample(
        self, prompts: Sequence[str], seed: int, step: int, sample_indices: Sequence[int], *, per_batch: bool = False
    ) -> list[str]:
        """Sample a negative for each prompt, or one for all of them if `per_batch`.

        `sample_indices` are the prompts' indices in the global batch.
        """
        if per_batch:
            return [self._sample_one(prompts, np.random.default_rng((seed, step)))] * len(prompts)
        pairs = zip(prompts, sample_indices, strict=True)
        return [self._sample_one([prompt], np.random.default_rng((seed, step, index))) for prompt, index in pairs]

    def _sample_one(self, prompts: Sequence[str], rng: np.random.Generator) -> str:
        """Sample a negative; resample one that contradicts a prompt, up to `MAX_RESAMPLES` times."""
        for _ in range(MAX_RESAMPLES):
            text = self.texts[min(int(np.searchsorted(self.cumulative, rng.random())), len(self.texts) - 1)]
            if not (self.avoid_contradictions and any(contradicts(prompt, text) for prompt in prompts)):
                break
        return text
